"""Text of others, names and messages, as terminals may have it: they do as they are told by what is not printable."""


def plain(text: str, breaks: bool = False) -> str:
    r"""`text` with every character that is not printable escaped as `repr` does: `\x1b`, `\u202e`, `\ud800`.

    Args:
        text: any, lone surrogates included, which no encoding holds.
        breaks: leave line breaks and tabs as they are.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or (breaks and each in "\n\t") else repr(each)[1:-1] for each in text)
