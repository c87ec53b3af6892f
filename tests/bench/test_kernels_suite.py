"""The kernels suite compares like with like: everybody computes the same answers, and each ratio has its target.

Nothing here says how fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from bench import building, kernels
from bench.building import shared_library
from bench.card_requests import BATCH, CardRequests
from bench.errors import BenchError
from bench.findings import Finding, Findings, Sample, Target, finding_rows, markdown, write_findings
from bench.kernel_library import KernelLibrary
from bench.machine import Source
from keyd.crypto.native import _core

if TYPE_CHECKING:
    from pathlib import Path

needs_gcc = pytest.mark.skipif(
    not building.is_available(), reason="the benches are partly C, and there is no gcc"
)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    try:
        return KernelLibrary()
    except BenchError as error:
        if "libcrypto" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def findings(library: KernelLibrary) -> Findings:
    """A whole run, as small as can be; it compares everybody's answers on its way."""
    found = Findings.begin(kernels.NAME, "tiny")
    kernels.measure_all(found, library, 0.001, 2, 1, lambda _repetition: None)
    return found


@needs_gcc
def test_the_paths_are_those_of_the_package(library: KernelLibrary) -> None:
    assert tuple(library.paths()) == _core.paths()


@needs_gcc
@pytest.mark.parametrize("task", ["each", "request"])
def test_every_path_has_openssls_answers(library: KernelLibrary, task: str) -> None:
    _, openssls = library.run(f"{task} EVP", 1)
    for path in library.paths():
        library.select(path)
        assert library.run(f"{task} keyd", 1)[1] == openssls, path


@needs_gcc
def test_who_is_not_there_is_refused(library: KernelLibrary) -> None:
    assert library.version("mbedtls") is None
    with pytest.raises(BenchError, match="did not compute"):
        library.run("each mbedtls", 1)


@needs_gcc
def test_everybody_is_measured_in_every_repetition(findings: Findings) -> None:
    for path in _core.paths():
        assert len(findings.values(kernels.EACH, f"keyd {path}")) == 2
    for what in (kernels.EACH, kernels.BULK, kernels.REQUEST):
        assert len(findings.values(what, kernels.EVP)) == 2
    assert len(findings.values(kernels.PYTHON, kernels.CRYPTOGRAPHY)) == 2
    assert all(sample.value > 0 for sample in findings.samples)


@needs_gcc
def test_every_target_of_the_suite_is_beside_its_figure(findings: Findings) -> None:
    bounds = {found.target.bound for found in findings.findings if found.target}
    assert bounds >= {2.5, 20.0, 15.0, 25.0}
    page = markdown(findings)
    assert "extrapolated" in page
    assert "OpenSSL 3" in page


def test_from_python_both_ways_give_a_cryptogram_for_every_request() -> None:
    requests = CardRequests()
    assert requests.by_keyd() == requests.by_cryptography()
    assert len({bytes(cryptogram) for cryptogram in requests.by_keyd()}) == BATCH


def test_a_median_is_judged_by_its_target(tmp_path: Path) -> None:
    found = Findings.begin("limits", "not at all")
    found.samples.append(Sample("latency", "keyd", "ms", 1, 2.0))
    found.findings.extend(
        (
            Finding("latency", " ms", [2.0, 9.0, 2.5], Target(3.0)),
            Finding("speed", "×", [14.0, 20.0, 14.9], Target(15.0, is_at_least=True)),
            Finding("size", " m", [1234.5]),
        )
    )
    assert finding_rows(found) == [
        ("latency", "2.50 ms", "2.00 – 9.00", "≤ 3 ms", "yes"),
        ("speed", "14.9×", "14.0 – 20.0", "≥ 15×", "no"),
        ("size", "1,234 m", "1,234 – 1,234", "", ""),
    ]
    as_json, as_markdown = write_findings(found, tmp_path)
    assert msgspec.json.decode(as_json.read_bytes(), type=Findings) == found
    assert as_markdown.read_text() == markdown(found)


def test_a_source_that_changed_meanwhile_is_said() -> None:
    """Otherwise figures of two sources would stand under one commit."""
    found = Findings.begin("limits", "not at all")
    other = msgspec.structs.replace(found, source=Source("0000000", is_dirty=False))
    other.note_changed_source()
    assert "CHANGED" in other.notes[-1]


@needs_gcc
def test_what_the_compiler_refuses_is_said(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return }\n")
    with pytest.raises(BenchError, match=r"refused broken\.c"):
        shared_library("broken", {source: ()}, ())
