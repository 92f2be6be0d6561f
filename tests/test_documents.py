"""README.md, CONTRIBUTING.md and docs/ name only existing files, headings, modules, flags and fields."""

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys

import pytest

from conftest import ROOT
from vdm import commandline, config as config_lib
from vdm.component import REGISTRIES
from vdm.errors import UserError

TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCK = re.compile(r"^```[\s\S]*?^```$|(?:^    .*\n)+", re.MULTILINE)  # fenced, or indented
SPAN = re.compile(r"`([^`]+)`")

# Flags of other programs.
OTHERS = {"file_format", "inplace", "logdir", "requeue", "signal"}


def code_of(text):
    """The lines of the code blocks in a document, and its inline code."""
    for block in BLOCK.findall(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if not line.strip().startswith("error: "):  # a message may name what does not exist
                yield line.strip()
    for span in SPAN.findall(BLOCK.sub("", text)):
        yield " ".join(span.split())


def everywhere(pattern):
    """(document, match) for each match of a pattern in the code of the documents."""
    for name, text in TEXTS.items():
        for line in code_of(text):
            for match in re.finditer(pattern, line):
                yield name, match


def anchors(text):
    """The anchors that GitHub gives the headings of a document."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def test_anchors_are_those_of_github():
    text = "# `a.b`: c, d\n\n## pmap, shard_map\n\n```\n# no\n```\n\n## [E f](g.md)\n\n## E f\n"
    assert anchors(text) == ["ab-c-d", "pmap-shard_map", "e-f", "e-f-1"]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    wrong, text = [], SPAN.sub("", BLOCK.sub("", TEXTS[name]))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists() or anchor and anchor not in anchors(path.read_text()):
            wrong.append(target)
    assert not wrong


def test_the_reference_is_what_the_code_says():
    """In a separate process, because tests change the defaults of flags."""
    line = [sys.executable, "docs/reference.py", "--check"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_paths_are_there():
    pattern = r"(?<![\w/.~-])(?:configs|docs|examples|experiments|tests|vdm)/[\w/.-]*(?![\w/*])"
    wrong = [(name, match[0]) for name, match in everywhere(pattern) if not (ROOT / match[0]).exists()]
    assert not wrong


def test_modules_can_be_run():
    wrong = []
    for name, match in everywhere(r"python -m ([\w.]+)"):
        spec = importlib.util.find_spec(match[1])
        if spec and spec.submodule_search_locations:
            spec = importlib.util.find_spec(f"{match[1]}.__main__")
        if not spec:
            wrong.append((name, match[1]))
    assert not wrong


def test_make_has_the_targets():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = [(name, match[0]) for name, match in everywhere(r"\bmake ([a-z]+)") if match[1] not in targets]
    assert not wrong


# ---- flags and fields ----------------------------------------------------------------

RUN = r"python -m ((?:vdm|experiments)[\w.]*)(.*)"
FLAG = r"(?<![\w-])--(?!config\.)([a-z]\w*)"
FIELD = r"(?:--|^|(?<=[=' ]))config\.([a-z0-9_.]+)(?![\w(])"  # a name in capitals is a placeholder


def flags_of(module):
    """The flags of a runnable module, or of the study that it runs, without the fields of the config."""
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    of = found if hasattr(found, "FLAGS") else getattr(found, "study", None)
    modules = of.FLAGS.flags_by_module_dict().items() if of else ()
    here = [flags for name, flags in modules if name.startswith(("vdm.", "experiments."))]  # not absl's
    return {"config", "help", *(flag.name for flags in here for flag in flags)}


def test_flags_are_those_of_the_command():
    wrong, known = [], OTHERS | flags_of("vdm.main") | flags_of("vdm.sweep")
    for name, match in everywhere(RUN):
        module, rest = match.groups()
        given = re.findall(FLAG, rest)
        if given:
            own = flags_of(module)
            known |= own
            wrong += [(name, module, flag) for flag in given if flag not in own]
    for name, text in TEXTS.items():
        wrong += [(name, flag) for flag in re.findall(FLAG, text) if flag not in known]
    assert not wrong


def known_fields():
    """Every section and field of a config, including those of the components in examples/."""
    fields = {*config_lib.flat(config_lib.default())}
    paths = {}
    for path, kind, _ in config_lib.places():
        paths.setdefault(kind, []).append(path)
        for cls in REGISTRIES[kind].classes().values():
            fields |= {f"{path}.name", *(f"{path}.{field}" for field in cls.config_fields())}
    for _, match in everywhere(r"examples\.\w+:\w+"):
        cls = pkgutil.resolve_name(match[0])
        paths["estimator"] = [f"eval.{config_lib.estimator_section(match[0])}"]
        for kind, of in paths.items():
            if issubclass(cls, pkgutil.resolve_name(REGISTRIES[kind].base)):
                fields |= {f"{path}.{field}" for path in of for field in cls.config_fields()}
    return fields | {field[:dot] for field in fields for dot in range(len(field)) if field[dot] == "."}


def test_fields_are_those_of_a_config():
    known = known_fields() | {"json"}  # config.json
    assert "model.schedule.gamma_min" in known and "model.encoder.net" in known and "model.nets" not in known
    found = [(name, match[1]) for name, match in everywhere(FIELD)]
    found += [(name, field) for name, text in TEXTS.items() for field in re.findall(f"(?=--){FIELD}", text)]
    wrong = {(name, field) for name, field in found if field.rstrip(".") not in known}
    assert len(found) > 100 and not wrong


def test_configs_take_what_the_commands_set():
    """Checks each command that names a file of configs/, with the fields that it sets."""
    wrong, count = [], 0
    for name, match in everywhere(RUN + r"--config=configs/\w+\.py.*"):
        given = commandline.split(re.sub(r"\s+#.*", "", match[0]).split()[2:])
        count += 1
        try:
            commandline.apply(config_lib.load(str(ROOT / given.file)), given.args)
        except UserError as error:
            wrong.append((name, match[0], str(error)))
    assert count > 5 and not wrong
