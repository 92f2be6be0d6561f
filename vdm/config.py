"""Fields of nested configs by their dotted names."""


def flat(config, prefix=""):
    """{dotted name: value} of nested dictionaries or ConfigDicts."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name: value}
    return found
