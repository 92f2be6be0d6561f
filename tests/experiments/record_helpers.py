"""Made-up workdirs with given numbers."""

import csv
import json


def line(step, bpd, se=0.1, split="test", terms=("diffusion", "prior"), passes=2):
    """A line of metrics.jsonl: the first term has nine tenths of the bits, and 10 steps take a second."""
    row = {"step": step, "split": split, "seconds": step / 10}
    for name, share in zip(("bpd", *terms), (1.0, 0.9, 0.1)):
        row |= {name: bpd * share}
        row |= {f"{name}_se": se * share, f"{name}_se_noise": se * share / 2} if split != "train" else {}
    return row | {"images": 4, "passes": passes}


def write_workdir(folder, lines, seed=0, steps=300, final=None, images=None, **fields):
    """Writes a workdir with these lines, `final` as its eval.json and `images` as its eval_images.csv."""
    folder.mkdir(parents=True)
    config = {"seed": seed, "data": {"name": "digits"}, "train": {"steps": steps}, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if final:
        numbers = {name: value for name, value in final.items() if name not in ("split", "seconds")}
        (folder / "eval.json").write_text(json.dumps(numbers | {"depth": [{"bpd": 9.0}]}))
    if images is not None:
        with (folder / "eval_images.csv").open("w", newline="") as file:
            rows = [[i, value, value - 1.0] for i, value in enumerate(images)]
            csv.writer(file).writerows([["image", "ELBO, T → ∞", "ELBO, T → ∞ diffusion"], *rows])
    return folder


def read_csv(path):
    """The rows of a CSV file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
