"""Reports of drills: for people (terminal, a page), for machines (JSON) and for CI (JUnit).

Decision made here: every report is made from `Results` alone, so each can be made again from the JSON file.
"""

from haclient.drill.report.html import write_html
from haclient.drill.report.junit import write_junit
from haclient.drill.report.results import About, Result, Results, read_json, write_json
from haclient.drill.report.terminal import table

__all__ = ["About", "Result", "Results", "read_json", "table", "write_html", "write_json", "write_junit"]
