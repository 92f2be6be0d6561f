"""Compresses images to an Archive, and back, bit for bit."""

from collections.abc import Iterable, Sequence
import math
from typing import Any, NamedTuple

import jax
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from vdm.codec import coder as coder_lib, header as header_lib, plain as plain_lib
from vdm.codec.archive import Archive, Words
from vdm.codec.coder import Coder
from vdm.codec.image_io import ImageSet
from vdm.codec.stack import NOTHING, START_BITS, Damaged, Stack
from vdm.contract import Ability
from vdm.data import fingerprint
from vdm.errors import UserError, require
from vdm.run import Run

# Images per stack, as the initial bits of a stack cost a few bits/dim of one image; most stacks.
PER_STACK, MOST_STACKS = 512, 64


class Compressed(NamedTuple):
    """An Archive, and the use of its bits.

    Attributes:
      bits: number of bits that each image added to its stack, without those of the label if the likelihood
        is that of an image given its label. The last images, stored without the model, are not among them.
      start: number of bits of the new stacks, which include the images stored without the model, and of the
        random bits.
    """

    archive: Archive
    bits: Float[np.ndarray, "coded"]
    start: int


def parts(made: Compressed, size: int) -> dict[str, float]:
    """The bits of a file of `size` bytes, divided into images, initial bits, and header with rounding.

    An image stored without the model counts as an image with the mean of the others; its bits beyond that
    mean count as initial bits.
    """
    coded, plain = float(made.bits.sum()), len(made.archive.header["plain"])
    images = coded + plain * float(made.bits.mean())
    header = 8 * size - coded - made.start
    return {"images": images, "initial": made.start + coded - images, "header": header}


def compress(config: ConfigDict, run: Run, given: ImageSet) -> Compressed:
    """Compresses images to an Archive; shows the progress and the rate.

    Raises:
      UserError: a field of config.codec is not accepted; or the model has no codec, or needs labels.
    """
    check(config, run)
    codec, size = config.codec, len(given.image)
    lanes = stacks_of(config, size)
    labels = _labels(run, given)
    coder = _coder(run, codec.timesteps, codec.fineness)

    def push(stacks, part):
        batch = _batch(labels[part], lanes) | {"image": _padded(given.image[part], lanes)}
        coder.push(stacks, batch)
        _push_labels(run, stacks, batch["label"])

    stacks = [Stack(codec.seed, number) for number in range(lanes)]
    plain: list[tuple[int, int]] = []
    if size > lanes:
        push(stacks, slice(0, lanes))
        last = (_to_words(run, given.image[i], labels[i]) for i in range(size - 1, lanes - 1, -1))
        stacks, plain = _started(codec.seed, [stack.words()[1] for stack in stacks], last)
    coded = size - len(plain)
    bits = np.zeros(coded)
    with tqdm(total=size, initial=len(plain), desc="compress", unit="image", disable=None) as bar:
        for first, count in _rounds(coded, lanes):
            now, part = stacks[:count], slice(first, first + count)
            before = [stack.bits for stack in now]
            push(now, part)
            bits[part] = np.subtract([stack.bits for stack in now], before)
            bar.set_postfix_str(f"{bits[: first + count].mean() / given.image[0].size:.3f} bits/dim")
            bar.update(count)
    if run.model.given_label:
        bits -= math.log2(run.data.spec.classes)
    words, initial = zip(*(stack.words() for stack in stacks))
    header = {
        "model": header_lib.fingerprint(config, run),
        "images": size,
        "shape": list(run.data.spec.shape),
        "sha": fingerprint.of_images(given.image, run.data.spec.vocab_size),
        "timesteps": codec.timesteps,
        "fineness": codec.fineness,
        "seed": codec.seed,
        "made": header_lib.made_by(),
        "initial": list(initial),
        "plain": plain,
    }
    if given.names is not None:
        header["names"] = given.names
    start = 32 * (sum(initial) + sum(count for _, count in plain)) + START_BITS * lanes
    return Compressed(Archive(header, list(words)), bits, start)


def decompress(config: ConfigDict, run: Run, given: Archive, path: str) -> ImageSet:
    """The images of an Archive, checked to be those that were compressed.

    Args:
      path: the file's name, for error messages.

    Raises:
      UserError: the file was written by another model; or, without config.codec.anywhere, on a machine
        whose numbers may differ; or the images are not those that were compressed.
    """
    check(config, run)
    header, lanes = given.header, len(given.stacks)
    header_lib.check(header, lanes, run, path)
    own, differ = header_lib.fingerprint(config, run), header_lib.differences(header["made"])
    require(
        header["model"] == own,
        f"{path!r} was compressed by another model, {header['model']}; this is {own}. Give the --workdir "
        "of that run, at the same checkpoint (--config.eval.checkpoint), and the fields of config.model.",
    )
    require(
        not differ or config.codec.anywhere,
        f"{path!r} was compressed with {differ}: probabilities may differ in their last digit, which makes "
        "decoding impossible. To attempt it, add --config.codec.anywhere=True; wrong images are refused.",
    )
    coder = _coder(run, header["timesteps"], header["fineness"])
    images, labels = [], []
    wrong = f"{path!r} cannot be decompressed here: the images are not those that were compressed"
    wrong += f" ({differ})." if differ else "."
    try:
        stacks = [Stack(header["seed"], number, words) for number, words in enumerate(given.stacks)]
        with tqdm(total=header["images"], desc="decompress", unit="image", disable=None) as bar:
            for _, count in reversed(_rounds(header["images"] - len(header["plain"]), lanes)):
                now = stacks[:count]
                batch = _batch(_pop_labels(run, now), lanes)
                images.append(coder.pop(now, batch)[:count])
                labels.append(batch["label"][:count])
                bar.update(count)
            lowest = [stack.lowest(initial) for stack, initial in zip(stacks, header["initial"])]
            plain = [_from_words(run, words) for words in _split(lowest, header["plain"])]
            bar.update(len(plain))
    except Damaged as error:
        raise UserError(wrong) from error
    image = np.concatenate([*images[::-1], *(image for image, _ in plain[::-1])])
    require(fingerprint.of_images(image, run.data.spec.vocab_size) == header["sha"], wrong)
    label = np.concatenate([*labels[::-1], *(label for _, label in plain[::-1])])
    return ImageSet(image, label if run.model.takes_label else None, header.get("names"))


def check(config: ConfigDict, run: Run) -> None:
    """Raises UserError if config.codec has a number that is not accepted, or the model has no codec."""
    check_config(config)
    require(
        Ability.CODE in run.model.abilities,
        f"config.model.name is {config.model.name!r}, which has no codec: it lacks {Ability.CODE.value}.",
    )
    require(jax.process_count() == 1, "a codec runs on one host; start a single process.")


def stacks_of(config: ConfigDict, images: int) -> int:
    """The number of stacks for a number of images."""
    return min(config.codec.lanes or max(1, min(images // PER_STACK, MOST_STACKS)), images)


def check_config(config: ConfigDict) -> None:
    """Raises UserError if config.codec has a number that is not accepted."""
    steps, lanes = config.codec.timesteps, config.codec.lanes
    require(steps >= 1, f"config.codec.timesteps is {steps}; accepted: 1 or more.")
    require(lanes >= 0, f"config.codec.lanes is {lanes}; accepted: 0 (by the number of images) or more.")
    fineness, finest = config.codec.fineness, header_lib.FINEST
    require(1 <= fineness <= finest, f"config.codec.fineness is {fineness}; accepted: 1 to {finest}.")


def _coder(run: Run, timesteps: int, fineness: float) -> Coder:
    # On one device, even if the run has several.
    params = jax.device_put(jax.device_get(run.state.ema), jax.devices()[0])
    return coder_lib.make(run.model, params, run.data.spec.shape, timesteps, fineness)


def _rounds(size: int, lanes: int) -> list[tuple[int, int]]:
    """(first image, number of images) of each round, in which every stack gets one image."""
    return [(first, min(lanes, size - first)) for first in range(0, size, lanes)]


def _batch(labels: Any, lanes: int) -> dict[str, Any]:
    """The batch of a round, without its images. Its size is fixed, so that both directions run the same
    compiled program."""
    return {"label": _padded(labels, lanes), "augmented": np.zeros(lanes, np.float32)}


def _padded(values: Any, lanes: int) -> Any:
    """Pads values with zeros to the number of lanes."""
    return np.concatenate([values, np.zeros((lanes - len(values), *values.shape[1:]), values.dtype)])


def _labels(run: Run, given: ImageSet) -> Any:
    """The labels to push; zeros for a model that takes no labels."""
    labels = given.label
    if not run.model.takes_label:
        return np.zeros(len(given.image), np.int32)
    classes = run.data.spec.classes
    require(
        labels is not None and np.all((labels >= 0) & (labels < classes)),
        f"the model is conditioned on labels, 0 to {classes - 1}, and --input has none or others; give an "
        ".npz file with 'label', or 'test'.",
    )
    return np.asarray(labels, np.int32)


def _started(
    seed: int, needs: Sequence[int], last: Iterable[Words]
) -> tuple[list[Stack], list[tuple[int, int]]]:
    """New stacks, with images at their bottoms in place of the random words that they need.

    Args:
      needs: number of random words that each stack needs.
      last: the words of each image that may be stored without the model.

    Returns:
      the stacks, and (stack, number of words) of each of these images.
    """
    stacks, plain = [], []
    words = next(last := iter(last), None)
    for number, need in enumerate(needs):
        lowest = NOTHING
        while words is not None and len(lowest) + len(words) <= need:
            lowest = np.append(words, lowest)
            plain.append((number, len(words)))
            words = next(last, None)
        stacks.append(Stack(seed, number, lowest=lowest))
    return stacks, plain


def _split(lowest: Sequence[Words], plain: Sequence[tuple[int, int]]) -> list[Words]:
    """The words of each image that `_started` placed at the bottom of a stack.

    Args:
      lowest: those words of each stack.
      plain: (stack, number of words) of each image.

    Raises:
      Damaged: these are not the numbers of these words.
    """
    rest, found = list(lowest), []
    for number, count in plain:
        if count > len(rest[number]):
            raise Damaged
        rest[number], words = np.split(rest[number], [len(rest[number]) - count])
        found.append(words)
    if any(len(words) for words in rest):
        raise Damaged
    return found


def _to_words(run: Run, image: Any, label: Any) -> Words:
    """An image stored without the model: its label, if the model takes labels, and the image."""
    words = plain_lib.to_words(image)
    return np.append(np.uint32(label), words) if run.model.takes_label else words


def _from_words(run: Run, words: Words) -> tuple[Any, Any]:
    """The inverse of `_to_words`: an image and its label, each as an array of one.

    Raises:
      Damaged: these are not the words of an image and a label.
    """
    label = words[: int(run.model.takes_label)]
    if np.any(label >= run.data.spec.classes):
        raise Damaged
    image = plain_lib.from_words(words[len(label) :], run.data.spec.shape)
    return image[None], label.astype(np.int32)


def _push_labels(run: Run, stacks: Sequence[Stack], labels: Any) -> None:
    """Pushes the labels with uniform probabilities, if the model takes labels of more than one class."""
    if run.model.takes_label and run.data.spec.classes > 1:
        for stack, label in zip(stacks, labels):
            stack.push_levels(label[None], np.ones((1, run.data.spec.classes)))


def _pop_labels(run: Run, stacks: Sequence[Stack]) -> Any:
    """The inverse of `_push_labels`; zeros if it pushed nothing."""
    if not run.model.takes_label or run.data.spec.classes == 1:
        return np.zeros(len(stacks), np.int32)
    likely = np.ones((1, run.data.spec.classes))
    return np.concatenate([stack.pop_levels(likely) for stack in stacks]).astype(np.int32)
