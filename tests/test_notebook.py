"""docs/quickstart.ipynb: each cell runs, its results are right, and the committed outputs are complete."""

import json
import os

import nbclient
import nbformat
import pytest

from conftest import ROOT, xla_flags

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"

# Replace the notebook's own parameters, so that it runs in seconds.
PARAMETERS = f"""
ROOT = pathlib.Path({str(ROOT)!r})
COUNT, SAMPLE_STEPS, PASSES, STEPS, SHORT = 8, 2, 4, 4, 2
"""

RESULTS = """
import json

print(json.dumps({
    "samples": {name: [str(v.dtype), *v.shape, int(v.max())] for name, v in samples.items()},
    "elbo": elbo.json(), "each": elbo.values["bpd"].tolist(),
    "area": area, "diffusion": digits.bits_per_dim(test, passes=PASSES).mean["diffusion"],
    "gamma": digits.gamma([0.0, 0.5, 1.0]).tolist(),
    "trained": [trained.step, *(model.step for model in compared.values())],
    "difference": [float(difference.mean()), float(error)],
    "judged": report.rows[0].estimate.values["bpd"].tolist(), "exact": exact.tolist(),
    "checks": report.checks,
}))
"""


def run(folder):
    """Runs the notebook with PARAMETERS; returns its RESULTS."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(PARAMETERS))
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    env = {**os.environ, "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env)
    return json.loads(notebook.cells[-1].outputs[0].text)


@pytest.mark.slow
def test_it_runs_and_its_results_are_right(tmp_path):
    found = run(tmp_path)
    assert found["samples"]["digits"][:5] == ["uint8", 8, 8, 8, 1] and found["samples"]["digits"][5] < 17
    assert found["samples"]["photographs"][:5] == ["uint8", 8, 32, 32, 3]
    # With trained weights: far below 2.47 for independent pixels and log2(17) = 4.09 for uniform ones.
    elbo = found["elbo"]
    assert elbo["images"] == len(found["each"]) == 10 and elbo["passes"] == 4
    assert 1.5 < elbo["bpd"] < 2.4 and 0.0 < elbo["bpd_se_noise"] < 2.0 * elbo["bpd_se"] < 1.0
    assert abs(found["area"] - found["diffusion"]) < 1e-6 and 1.5 < found["area"] < 2.4
    assert found["gamma"] == sorted(found["gamma"]) and found["gamma"][0] < -7 and found["gamma"][2] > 4
    assert found["trained"] == [4, 2, 2]
    mean, error = found["difference"]
    assert 0.0 < error and abs(mean) < 10.0
    # Independent pixels: the ELBO is the closed form, except for its prior term of 0.003 and the noise.
    judged, exact = found["judged"], found["exact"]
    assert len(judged) == len(exact) == 100 and abs(sum(judged) - sum(exact)) / 100 < 0.1
    assert 2.4 < sum(exact) / 100 < 2.55 and not [line for line in found["checks"] if "NO" in line]


def test_what_is_committed_was_run_and_is_small():
    assert NOTEBOOK.stat().st_size < 400_000
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        assert "/" not in output.get("text", "").replace("bits/dim", ""), "a path of one machine"
