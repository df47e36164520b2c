"""The tables of README.md from what the tests wrote into results/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from smoothfast.runs.tables import markdown

HERE = Path(__file__).parent
REPORT = r"length= (?P<length>\d+ \w+) .*?\n(?P<body>.*?)(?=\n\n|\Z)"  # a report of PractRand, by length
SHOWN, WEAK = 0.1, 0.01  # results that PractRand expects to remark on in a report; p values that dieharder calls weak


class Report(NamedTuple):
    """PractRand after so many bytes: how many results it had, and what it says of those it remarks on."""

    length: str
    results: int
    remarks: list[tuple[str, str, str]]  # test, p, evaluation


class Outcome(NamedTuple):
    """A p value of dieharder."""

    test: str
    p: float
    assessment: str

    @property
    def weak(self) -> bool:
        return self.assessment != "PASSED"


def practrand() -> dict[str, list[Report]]:
    """The reports on each stream, each on the first bytes of the same."""
    return {_stream(path): _reports(path.read_text()) for path in sorted(HERE.glob("results/practrand-*.txt"))}


def dieharder() -> dict[str, list[Outcome]]:
    """The p values of each stream and group of tests."""
    return {_stream(path): _outcomes(path.read_text()) for path in sorted(HERE.glob("results/dieharder-*.txt"))}


def dieharder_again() -> dict[str, list[Outcome]]:
    """Those of each stream and test that was weak, with another seed and four times the data."""
    return {_stream(path): _outcomes(path.read_text()) for path in sorted(HERE.glob("results/again-*.txt"))}


def _stream(path: Path) -> str:
    _, kind, rest = path.stem.split("-", 2)
    return f"{kind}, {rest}"


def _axis(stream: str) -> str:
    """A stream without the tests that follow its name."""
    return stream.rsplit("-", 1)[0]


def _reports(text: str) -> list[Report]:
    return [
        Report(found["length"], _results(found["body"]), _remarks(found["body"]))
        for found in re.finditer(REPORT, text, re.DOTALL)
    ]


def _results(body: str) -> int:
    others = re.search(r"(\d+) test result", body)
    assert others is not None, body
    return int(others[1]) + len(_remarks(body))


def _remarks(body: str) -> list[tuple[str, str, str]]:
    return re.findall(r"^  (\S+) +R= *\S+ +p *~?= *(\S+) +(\S.*?) *$", body, re.MULTILINE)


def _outcomes(text: str) -> list[Outcome]:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.count("|") == 5]
    return [Outcome(name if n == "0" else f"{name} {n}", float(p), judged) for name, n, _, _, p, judged in rows]


def by_stream() -> str:
    """PractRand at the greatest length of each stream, and what it remarked on at any."""
    rows = []
    for stream, reports in practrand().items():
        remarks = [remark for report in reports for remark in report.remarks]
        unusual = sum(evaluation == "unusual" for *_, evaluation in remarks)
        last = reports[-1]
        rows.append([stream, last.length, str(last.results), str(unusual), str(len(remarks) - unusual)])
    return markdown(["stream", "bytes", "results", "unusual", "worse"], rows)


def by_group() -> str:
    """The assessments of dieharder."""
    rows = []
    for stream, outcomes in dieharder().items():
        counts = [sum(one.assessment == name for one in outcomes) for name in ("PASSED", "WEAK", "FAILED")]
        ends = [f"{end(one.p for one in outcomes):.4f}" for end in (min, max)]
        rows.append([stream, *map(str, counts), *ends])
    return markdown(["stream and tests", "passed", "weak", "failed", "least p", "greatest p"], rows)


def expected() -> str:
    """How many remarks good numbers get, and how many there were."""
    reports = [report for all_of_one in practrand().values() for report in all_of_one]
    outcomes = [one for all_of_one in dieharder().values() for one in all_of_one]
    remarks, weak = sum(len(one.remarks) for one in reports), sum(one.weak for one in outcomes)
    rows = [
        ["PractRand", f"{len(reports)} reports", f"{SHOWN * len(reports):.1f}", str(remarks)],
        ["dieharder", f"{len(outcomes)} p values", f"{WEAK * len(outcomes):.1f}", str(weak)],
    ]
    return markdown(["", "of", "expected", "found"], rows)


def remarked() -> str:
    """Every result that was remarked on."""
    rows = [
        [stream, f"{test}, {report.length}", p, evaluation]
        for stream, reports in practrand().items()
        for report in reports
        for test, p, evaluation in report.remarks
    ]
    for stream, outcomes in dieharder().items():
        rows += [[stream, one.test, f"{one.p:.6f}", one.assessment] for one in outcomes if one.weak]
    return markdown(["stream", "test", "p", "said"], rows)


def repeated() -> str:
    """The weak ones again, with both p values where a test has two, and what was weak then."""
    weak = {(_axis(name), one.test) for name, all_of_one in dieharder().items() for one in all_of_one if one.weak}
    rows = [
        [_axis(name), one.test, f"{one.p:.6f}", one.assessment]
        for name, outcomes in dieharder_again().items()
        for one in outcomes
        if one.weak or (_axis(name), one.test) in weak
    ]
    return markdown(["stream", "test", "p", "said"], rows)


TABLES = (by_stream, by_group, expected, remarked, repeated)

if __name__ == "__main__":
    print("\n\n".join(table() for table in TABLES))
