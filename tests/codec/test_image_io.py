"""Which images can be compressed, and where decompressed ones are written."""

import numpy as np
from PIL import Image
import pytest

from codec_helpers import SPEC, images
from vdm.codec import image_io
from vdm.codec.image_io import ImageSet
from vdm.data.dataset import Data, Spec, in_memory
from vdm.errors import UserError

IMAGE, LABEL = images(3)
GREY = Data(in_memory(IMAGE, LABEL), in_memory(IMAGE[::-1], LABEL), SPEC)
COLOUR = Data(GREY.train, GREY.test, Spec((2, 3, 3), 256, 0))


def test_a_folder_comes_back_with_its_names(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 3)).astype(np.uint8)
    names = ["a.png", "b/a.PNG", "c.bmp"]
    for name, pixels in zip(names, image):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    found = image_io.read(str(tmp_path / "in"), COLOUR)
    np.testing.assert_array_equal(found.image, image)
    assert found.names == names
    image_io.write(tmp_path / "out", found)
    back = image_io.read(str(tmp_path / "out"), COLOUR)
    np.testing.assert_array_equal(back.image, image)
    assert back.names == ["a.png", "b/a.PNG", "c.bmp.png"]


def test_an_npz_file_comes_back_and_images_without_names_are_numbered(tmp_path):
    np.savez(tmp_path / "in.npz", images=IMAGE[..., 0], label=LABEL)
    found = image_io.read(str(tmp_path / "in.npz"), GREY)
    image_io.write(tmp_path / "out.npz", found)
    image_io.write(tmp_path / "out.npz", found)  # overwrites the first
    back = image_io.read(str(tmp_path / "out.npz"), GREY)
    for one in (found, back):
        np.testing.assert_array_equal(one.image, IMAGE)
        np.testing.assert_array_equal(one.label, LABEL)
    image_io.write(tmp_path / "out", found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(image_io.read(str(tmp_path / "out"), GREY).image, IMAGE)


def test_the_test_split():
    found = image_io.read("test", GREY)
    np.testing.assert_array_equal(found.image, IMAGE[::-1])
    np.testing.assert_array_equal(found.label, LABEL)


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png", "..\\x.png"])
def test_no_file_is_written_outside_of_the_folder(name, tmp_path):
    with pytest.raises(UserError, match="lies outside --output"):
        image_io.write(tmp_path / "out", ImageSet(IMAGE[:1], None, [name]))
    assert not list(tmp_path.iterdir())


def test_no_image_takes_the_name_of_another(tmp_path):
    with pytest.raises(UserError, match="two images would be called c.bmp.png"):
        image_io.write(tmp_path / "out", ImageSet(IMAGE, None, ["c.bmp", "C.bmp.png", "d.png"]))
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_folder_that_could_not_be_written(tmp_path, monkeypatch):
    def full(self, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        image_io.write(tmp_path / "out", ImageSet(IMAGE))
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_stays(tmp_path):
    (tmp_path / "x").write_text("")
    for path in (tmp_path, tmp_path / "x"):
        with pytest.raises(UserError, match="exists already; give a new folder"):
            image_io.check_target(path)
    image_io.check_target(tmp_path / "new")


def test_what_cannot_be_compressed(tmp_path):
    def refuses(match, source=tmp_path, data=GREY):
        with pytest.raises(UserError, match=match):
            image_io.read(str(source), data)

    refuses("does not exist; accepted: a folder of images, an .npz file, or 'test'", "tset")
    refuses("no image was found; accepted: files that end in .png")
    refuses("holds no image", data=Data(GREY.train, in_memory(IMAGE[:0]), SPEC), source="test")
    refuses(r"of uint8 \[4, 4, 1\]; accepted by this model: uint8 \[2, 3, 3\]", "test", COLOUR)
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "a.png")
    refuses("4 × 4, mode RGBA, 1 of them; accepted by this model: 4 × 4, mode L.* convert the image first")
    Image.fromarray(np.full((4, 4), 17, np.uint8)).save(tmp_path / "a.png")
    refuses("values up to 17; accepted by this model: 0 to 16")
    (tmp_path / "a.png").write_bytes(b"no image")
    refuses("a.png' cannot be read as an image")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    refuses("cannot be read as an .npz file", tmp_path / "a.npz")
    for name, value in {"label": LABEL[:2], "name": ["a", "b"]}.items():
        np.savez(tmp_path / "a.npz", image=IMAGE, **{name: value})
        refuses(f"whose array '{name}' does not have one entry for each image", tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", IMAGE)
    refuses("cannot be read as an .npz file", tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", photos=IMAGE)
    refuses("with the arrays photos; accepted: 'image'", tmp_path / "a.npz")
