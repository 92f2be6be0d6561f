"""--mode=compress and --mode=decompress: images to a file about as large as the model's bound, and back."""

import pathlib

from ml_collections import ConfigDict

from vdm import run as run_lib
from vdm.codec import archive, codec, image_io


def compress(config: ConfigDict, workdir: pathlib.Path, source: str, target: str) -> None:
    """Compresses the images of --input to the file --output, and prints its size.

    Raises:
      UserError: the workdir has no checkpoint; or --input, --output or a field of config.codec is not
        accepted.
    """
    run = run_lib.restore(config, workdir, images=source == image_io.TEST)
    given = image_io.read(source, run.data)
    made = codec.compress(config, run, given)
    data = archive.to_bytes(made.archive)
    archive.write(pathlib.Path(target), data)
    dims = given.image.size
    print(f"{target}: {len(given.image)} images, {len(data):,} bytes, {8 * len(data) / dims:.4f} bits/dim")
    parts = codec.parts(made, len(data))
    print("of which " + ", ".join(f"{name} {bits / dims:.4f}" for name, bits in parts.items()))


def decompress(config: ConfigDict, workdir: pathlib.Path, source: str, target: str) -> None:
    """Writes the images of the file --input to --output: an .npz file, or a folder of PNG files.

    Raises:
      UserError: the workdir has no checkpoint; the file is damaged, or comes from another model or machine;
        or --output cannot be written.
    """
    given = archive.read(pathlib.Path(source).expanduser())
    image_io.check_target(pathlib.Path(target))
    run = run_lib.restore(config, workdir, images=False)
    found = codec.decompress(config, run, given, source)
    image_io.write(pathlib.Path(target), found)
    print(f"{target}: {len(found.image)} images, equal to those that were compressed")
