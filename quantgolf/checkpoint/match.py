"""Which stored tensor belongs to which parameter or buffer of a module.

Names decide. What a training setup adds to them is taken off again where everything then fits (`torch.compile` puts
`_orig_mod` into names, DDP puts `module` before them), and said in a note; anything else that differs is a problem,
and all problems come together.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantgolf.checkpoint.finite import CHUNK, DIRECT
from quantgolf.checkpoint.read import listed
from quantgolf.errors import QuantGolfError

WRAPPERS = ("_orig_mod", "module")  # torch.compile writes the first into names, DDP the second before them


@dataclass(frozen=True)
class Match:
    """Stored tensors under a module's names.

    Attributes:
        tensors: by the module's first name for each storage.
        aliases: the further names that the checkpoint has for a tensor, by that first name.
        notes: what was done to make them fit; empty where nothing was.
        problems: what does not fit.
        hint: what all names have wrong; empty where that is not it.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    hint: str

    def refuse_problems(self, source: str) -> None:
        """Raises QuantGolfError where there are problems; `source` says where the tensors come from."""
        if self.problems:
            remedy = self.hint or "Give the model it was trained as"
            raise QuantGolfError(f"{source} does not match the model: {listed(self.problems)}. {remedy}")


def match(module: nn.Module, stored: Mapping[str, Tensor]) -> Match:
    """Finds each tensor's place in a module, without touching either.

    Several names of one storage are one tensor exactly where the module ties them; they must then hold the same
    numbers. Names that share storage in the file alone are two tensors. A tensor the module has no place for is
    accepted in two cases: it is a matrix that repeats another one number by number (a head tied in code and not by
    name), and becomes its alias; or it repeats a buffer that the module computes itself (rotary frequencies), and is
    left out with a note.
    """
    targets = state_of(module)
    first = first_names(targets)
    renamed, notes = _resolved(list(stored), targets, first)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    surplus: dict[str, Tensor] = {}
    shapes: list[str] = []
    differing: list[str] = []
    for stored_name, tensor in stored.items():
        name = renamed[stored_name]
        if name not in targets:
            surplus[name] = tensor
            continue
        shapes += _misfit(name, tensor, targets[name])
        home = first[name]
        if home not in tensors:
            tensors[home] = tensor
            given[home] = name
        elif not same(tensor, tensors[home]):
            differing.append(f"{name} differs from {given[home]}, which the model ties to it")
        if name != home:
            aliases.setdefault(home, []).append(name)
    problems = [f"missing {name}" for name in targets if first[name] == name and name not in tensors]
    computed = _computed_buffers(module, targets)
    twins = _twins(surplus.values(), tensors)
    left_out: list[str] = []
    for name, tensor in surplus.items():
        twin = twins.get(_place(tensor))
        if twin is not None:
            aliases.setdefault(twin, []).append(name)
        elif any(_repeats(tensor, buffer) for buffer in computed.get(_last(name), ())):
            left_out.append(f"left out {name}: the model computes the same values itself")
        else:
            problems.append(f"surplus {name}")
    hint = _hint(stored, targets) if any(p.startswith(("missing", "surplus")) for p in problems) else ""
    tied = {home: tuple(names) for home, names in aliases.items()}
    return Match(tensors, tied, (*notes, *left_out), (*problems, *shapes, *differing), hint)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a checkpoint of the module holds, themselves, by name.

    Raises:
        QuantGolfError: the module keeps something else there too (`get_extra_state`).
    """
    state = module.state_dict(keep_vars=True)
    extra = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if extra:
        raise QuantGolfError(
            f"the model keeps {listed(extra)}, which are no tensors; give a model without get_extra_state"
        )
    return state


def first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of every name's storage: one parameter under two names, or two that are the same memory."""
    seen: dict[object, str] = {}
    return {name: seen.setdefault(_place(tensor), name) for name, tensor in state.items()}


def _place(tensor: Tensor) -> object:
    if tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same dtype."""
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    return _place(a) == _place(b) or torch.equal(a, b)


def _misfit(name: str, tensor: Tensor, target: Tensor) -> list[str]:
    if tensor.shape != target.shape:
        return [f"{name} is {list(tensor.shape)} where the model has {list(target.shape)}"]
    if (target.is_floating_point() and not tensor.is_floating_point()) or (
        tensor.is_complex() and not target.is_complex()
    ):
        kinds = [str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, target.dtype)]
        return [f"{name} is {kinds[0]} where the model has {kinds[1]}"]
    return []


def _resolved(
    names: list[str], targets: Mapping[str, Tensor], first: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The module's name for each stored one: the same, or regardless of what compiling and DDP add where that
    gives every parameter its tensor."""
    plain = {name: name for name in names}
    homes = set(first.values())
    if {first.get(name) for name in names} == homes:
        return plain, ()
    ours = {_bare(name): name for name in targets}
    renamed = {name: ours.get(_bare(name), name) for name in names}
    changed = [(name, new) for name, new in renamed.items() if name != new]
    one_to_one = len(ours) == len(targets) and len(set(renamed.values())) == len(names)
    if not changed or not one_to_one or not homes <= {first.get(name) for name in renamed.values()}:
        return plain, ()
    example, new = changed[0]
    what = " and ".join(repr(part) for part in WRAPPERS if any(part in f"{a}.{b}".split(".") for a, b in changed))
    return renamed, (f"matched {len(changed)} names regardless of {what}: stored {example} is {new}",)


def _bare(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _twins(surplus: Iterable[Tensor], tensors: Mapping[str, Tensor]) -> dict[object, str]:
    """By place: the names of matrices with the same numbers; constant ones are alike without being tied, unless they
    are the same memory.

    Each tensor is looked at once, however many there are: a file of few bytes may have very many, and one of them
    under very many names.
    """
    matrices = {_place(each): each for each in surplus if each.ndim > 1 and each.numel() and each.dtype in DIRECT}
    found: dict[object, str] = {}
    for name, tensor in tensors.items():
        if (place := _place(tensor)) in matrices:
            found.setdefault(place, name)
    others = {place: each for place, each in matrices.items() if place not in found and each.min() != each.max()}
    kinds = {(each.dtype, each.shape) for each in others.values()}
    digests: dict[bytes, str] = {}
    for name, tensor in tensors.items():
        if (tensor.dtype, tensor.shape) in kinds:
            digests.setdefault(_digest(tensor), name)
    for place, each in others.items():
        name = digests.get(_digest(each), "")
        if name and same(tensors[name], each):
            found[place] = name
    return found


def _digest(tensor: Tensor) -> bytes:
    """Of the numbers of a tensor that numpy has bytes of, in which 0 and -0 are one."""
    whole = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    for chunk in torch.split(tensor.detach().reshape(-1), CHUNK):
        whole.update((chunk + 0.0).cpu().view(torch.uint8).numpy().data)
    return whole.digest()


def _computed_buffers(module: nn.Module, targets: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Those that a checkpoint lacks, by the last part of their names: layers may share one since."""
    found: dict[str, list[Tensor]] = {}
    for name, buffer in module.named_buffers():
        if name not in targets and not buffer.is_meta:
            found.setdefault(_last(name), []).append(buffer)
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _repeats(tensor: Tensor, buffer: Tensor) -> bool:
    """Whether a stored tensor has the values of a computed buffer."""
    if tensor.shape != buffer.shape:
        return False
    buffer = buffer.to(tensor.device)
    if tensor.is_floating_point() and buffer.is_floating_point():
        return torch.allclose(tensor.float(), buffer.float(), rtol=max(1e-6, torch.finfo(tensor.dtype).eps), atol=0)
    return torch.equal(tensor.to(buffer.dtype), buffer)


def _hint(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> str:
    """What to do where a prefix on all names would make most of them fit."""
    hits = sum(name in targets for name in stored)
    wanted = max(hits + 1, len(stored) // 2)
    for prefix in _prefixes(stored):
        if all(name.startswith(prefix) for name in stored) and (
            sum(name.removeprefix(prefix) in targets for name in stored) >= wanted
        ):
            return f"All stored names begin with {prefix!r}, which the model's do not: rename them without it"
    for prefix, names in _prefixes(targets).items():
        if names >= wanted and sum(prefix + name in targets for name in stored) >= wanted:
            return f"The model's names begin with {prefix!r}, which the stored ones lack: rename them with it"
    return ""


def _prefixes(names: Iterable[str]) -> dict[str, int]:
    """Runs of one to three leading parts of names, shortest first, and how many names begin so."""
    found: Counter[str] = Counter()
    for depth in (1, 2, 3):
        for name in names:
            parts = name.split(".")
            if len(parts) > depth:
                found[".".join(parts[:depth]) + "."] += 1
    return found
