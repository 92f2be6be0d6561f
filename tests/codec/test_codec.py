"""Images to a file and back, and the file's length against the ELBO and the true likelihood."""

import types

import jax
import numpy as np
import pytest

from codec_helpers import MODELS, images, make_run
from conftest import slow
import exact
from vdm.codec import archive, codec
from vdm.codec.image_io import ImageSet
from vdm.codec.stack import Damaged, Stack
from vdm.errors import UserError
from vdm.estimate import standard_error
from vdm.evaluation import codec as codec_estimator, elbo
from vdm.run import Run

EMPTY = {"schedule": {}, "net": {}}

pytestmark = pytest.mark.usefixtures("single")


def through(config, run, given):
    """The result of compressing the images, and the images decompressed from its bytes."""
    made = codec.compress(config, run, given)
    data = archive.to_bytes(made.archive)
    return made, codec.decompress(config, run, archive.from_bytes(data, "x"), "x")


LONG = ("levels, each value its own γ", "mhvae", "mhvae I, II", "latent, label")
EACH = [name for name in MODELS if name not in ("label", "latent", "gaussian")]


@pytest.mark.parametrize("name", [slow(name) if name in LONG else name for name in EACH])
def test_every_model_gives_back_what_it_got_from_a_file_as_long_as_its_bound(name):
    config, run = make_run(MODELS[name], count=161)
    config.codec.timesteps, config.codec.lanes = 30, 8
    config.eval.passes, config.eval.batch_size = 40, 161
    bound, _ = elbo.elbo_row(config, run, run.model)
    result = codec_estimator.Codec().measure(config, run, [bound])
    bound, file = result.rows
    coded = file.estimate.values["images"]
    assert 161 - 8 * 3 <= len(coded) <= 161  # the others are stored without the model
    above = coded - bound.estimate.values["bpd"][: len(coded)]
    se = standard_error(above)
    assert se < 0.015 * bound.estimate.mean["bpd"]
    assert abs(above.mean()) < 4.0 * se + 2e-3
    assert "NO" not in " ".join(result.checks)
    # All levels are equally likely in these images, so no code can be shorter.
    assert file.estimate.mean["images"] > np.log2(17) - 3.0 * se


def test_names_and_labels_come_back_too():
    config, run = make_run(MODELS["label"])
    config.codec.timesteps = 3
    image, label = images(9)
    image[3] = 7  # a single colour
    names = [f"a/ä\udce9{i}.png" for i in range(9)]  # as on a file system that is not UTF-8
    made, back = through(config, run, ImageSet(image, label, names))
    assert made.archive.header["plain"]  # some of the images, with their labels, are stored without the model
    np.testing.assert_array_equal(back.image, image)
    np.testing.assert_array_equal(back.label, label)
    assert back.names == names


@pytest.mark.slow
def test_other_random_bits_are_other_files_of_the_same_images():
    config, run = make_run(MODELS["vae"])
    image, _ = images(5)
    found = set()
    for config.codec.seed in range(5):
        made, back = through(config, run, ImageSet(image))
        np.testing.assert_array_equal(back.image, image)
        found.add(tuple(made.archive.stacks[0].tolist()))
    assert len(found) == 5


@pytest.mark.slow
def test_where_the_denoiser_is_optimal_it_is_the_truth_that_is_coded():
    """As T grows, the file's length falls to −log p(x) under the images' distribution, with an excess of
    order 1/T."""
    log_p = exact.log_probabilities((4, 4, 1), 5)
    image, truth = exact.images(log_p, 250)
    config = exact.config()
    config.codec.lanes = 10
    run = Run(exact.split(image, 5), exact.model(log_p, -9.0, 8.0), types.SimpleNamespace(ema=EMPTY))
    above = []
    for timesteps in (30, 120):
        config.codec.timesteps = timesteps
        made, back = through(config, run, ImageSet(image))
        np.testing.assert_array_equal(back.image, image)
        above.append(made.bits / 16 - truth[: len(made.bits)])
    coded = min(map(len, above))
    assert coded > 200
    limit = (4.0 * above[1][:coded] - above[0][:coded]) / 3.0
    se = standard_error(limit)
    assert se < 0.02 and abs(limit.mean()) < 3.0 * se + 0.01
    assert above[0].mean() > above[1].mean() + 0.1


@pytest.mark.parametrize("lanes", [1, 3, 50])
@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_images_on_any_number_of_lanes(lanes, count):
    config, run = make_run(MODELS["diffusion"])
    config.codec.timesteps, config.codec.lanes = 4, lanes
    image, _ = images(count, seed=2)
    made, back = through(config, run, ImageSet(image))
    np.testing.assert_array_equal(back.image, image)
    assert len(made.archive.stacks) == min(lanes, count)


@pytest.mark.parametrize(
    "lanes, count, stacks",
    [(0, 1, 1), (0, 1_023, 1), (0, 1_024, 2), (0, 50_000, 64), (8, 1_017, 8), (8, 3, 3)],
)
def test_how_many_stacks(lanes, count, stacks):
    """By default one stack for every 512 images, from 1 to 64; never more stacks than images."""
    config, _ = make_run(MODELS["diffusion"])
    config.codec.lanes = lanes
    assert codec.stacks_of(config, count) == stacks


def test_no_bits_but_those_of_images_initial_words_and_header():
    config, run = make_run(MODELS["diffusion"])
    config.codec.timesteps, config.codec.lanes = 4, 2
    made = codec.compress(config, run, ImageSet(images(40)[0]))
    words = 32 * sum(map(len, made.archive.stacks))
    # A stack is a whole number of words.
    assert 0 <= words - made.bits.sum() - made.start < 2 * 32
    size, plain = 10_000, len(made.archive.header["plain"])
    parts = codec.parts(made, size)
    assert plain and sum(parts.values()) == pytest.approx(8 * size)
    assert parts["images"] == pytest.approx(made.bits.mean() * 40)
    assert len(made.bits) == 40 - plain


def test_what_no_model_can_have_made_is_refused():
    config, run = make_run(MODELS["diffusion"])
    config.codec.timesteps = 3
    config.codec.lanes = 5
    made = codec.compress(config, run, ImageSet(images(5)[0]))
    header, stacks = made.archive

    def refuses(match, header=header, stacks=stacks, run=run):
        with pytest.raises(UserError, match=match):
            codec.decompress(config, run, archive.Archive(header, stacks), "x")

    refuses("another model", run=make_run({**MODELS["diffusion"], "model.net.width": 24})[1])
    refuses("jax 0.0, here.*anywhere=True", header | {"made": header["made"] | {"jax": "0.0"}})
    refuses("not those that were compressed", header | {"sha": "0" * 16})
    refuses("not those that were compressed", stacks=[np.zeros(2, np.uint32) for _ in stacks])
    refuses("whose images, made this model", header | {"images": "5", "made": None})
    others = {"shape": [4, 4, 2], "images": 4, "timesteps": 0, "fineness": 0, "initial": [1.5] * 5}
    for name, value in {**others, "names": [1] * 5}.items():
        refuses(f"whose {name} this model", header | {name: value})
    refuses("not those that were compressed", header | {"seed": 1})
    refuses("not those that were compressed", stacks=[stack ^ np.uint32(64) for stack in stacks])
    config.codec.anywhere = True
    elsewhere = header | {"made": header["made"] | {"device": "other"}}
    found = codec.decompress(config, run, archive.Archive(elsewhere, stacks), "x")
    np.testing.assert_array_equal(found.image, images(5)[0])
    refuses("device other, here", elsewhere | {"fineness": 15.0})


def test_what_no_model_can_have_stored_without_the_model_is_refused():
    config, run = make_run(MODELS["label"])
    config.codec.timesteps, config.codec.lanes, config.codec.fineness = 3, 2, 1000.0
    given = ImageSet(*images(40))
    header, stacks = codec.compress(config, run, given).archive
    back = codec.decompress(config, run, archive.Archive(header, stacks), "x")
    np.testing.assert_array_equal(back.image, given.image)
    np.testing.assert_array_equal(back.label, given.label)
    plain = header["plain"]
    assert {number for number, _ in plain} == {0, 1} and len(plain) > 2
    for wrong in ([5, 3], [-1, 3], [0, 0], [0], 3, ["0", 3]):
        with pytest.raises(UserError, match="whose plain this model"):
            codec.decompress(config, run, archive.Archive(header | {"plain": [wrong]}, stacks), "x")
    swapped, (number, count) = plain[::-1], plain[0]
    longer, more = [(number, count + 1), *plain[1:]], [*plain, (0, 1)]
    for wrong in (swapped, longer, plain[1:], more, [(number, 10**9)]):
        with pytest.raises(UserError, match="not those that were compressed"):
            codec.decompress(config, run, archive.Archive(header | {"plain": wrong}, stacks), "x")


def test_words_of_an_image_with_a_label_that_no_class_has():
    run = make_run(MODELS["label"])[1]
    image, _ = images(1)
    assert codec._from_words(run, codec._to_words(run, image[0], 9))[1] == 9
    with pytest.raises(Damaged):
        codec._from_words(run, codec._to_words(run, image[0], 10))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"timesteps": 0}, "codec.timesteps is 0; accepted: 1 or more"),
        ({"lanes": -1}, "codec.lanes is -1; accepted: 0 .by the number of images. or more"),
        ({"fineness": 0.5}, "codec.fineness is 0.5; accepted: 1 to 1024"),
        ({"images": -1}, "codec.images is -1"),
    ],
)
def test_bad_numbers_are_refused(changes, match):
    config, _ = make_run(MODELS["diffusion"])
    config.codec.update(changes)
    with pytest.raises(UserError, match=match):
        codec_estimator.Codec().check_config(config)


def test_a_model_that_needs_labels_asks_for_them():
    config, run = make_run(MODELS["label"])
    with pytest.raises(UserError, match="0 to 9, and --input has none or others"):
        codec.compress(config, run, ImageSet(images(2)[0]))


def test_a_label_of_a_single_class_takes_no_bits():
    model, spec = types.SimpleNamespace(takes_label=True), types.SimpleNamespace(classes=1)
    run, stacks = types.SimpleNamespace(model=model, data=types.SimpleNamespace(spec=spec)), [Stack(0, 0)]
    before = stacks[0].bits
    codec._push_labels(run, stacks, np.zeros(1, np.int32))
    assert stacks[0].bits == before and codec._pop_labels(run, stacks).tolist() == [0]


def test_a_model_that_diverged_is_refused():
    config, run = make_run(MODELS["diffusion"])
    run.state.ema["net"] = jax.tree.map(lambda leaf: leaf * np.nan, run.state.ema["net"])
    with pytest.raises(UserError, match="not finite"):
        codec.compress(config, run, ImageSet(images(2)[0]))
