"""--mode=decompress: the images of a file that --mode=compress wrote."""

import pathlib

from ml_collections import ConfigDict

from vdm import run as run_lib
from vdm.codec import archive, codec, image_io


def run(config: ConfigDict, workdir: pathlib.Path, source: str, target: str) -> None:
    """Writes the images of the file --input to --output: an .npz file, or a folder of PNG files.

    Raises:
      UserError: the workdir has no checkpoint; the file is damaged, or of another model or machine; or
        --output cannot be written.
    """
    given = archive.read(pathlib.Path(source).expanduser())
    image_io.check_target(pathlib.Path(target))
    run = run_lib.restore(config, workdir)
    found = codec.decompress(config, run, given, source)
    image_io.write(pathlib.Path(target), found)
    print(f"{target}: {len(found.image)} images, equal to those that were compressed")
