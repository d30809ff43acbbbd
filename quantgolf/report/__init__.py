"""Pictures and pages of measured points."""

from quantgolf.report.demo import demo_picture as demo_picture
from quantgolf.report.page import page as page
from quantgolf.report.pictures import TITLES as TITLES
from quantgolf.report.pictures import picture as picture
from quantgolf.report.results import panels_of as panels_of
from quantgolf.report.results import read_results as read_results
from quantgolf.report.style import DARK as DARK
from quantgolf.report.style import LIGHT as LIGHT

__all__ = ["DARK", "LIGHT", "TITLES", "demo_picture", "page", "panels_of", "picture", "read_results"]
