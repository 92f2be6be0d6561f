"""The training loop: reads batches, runs steps on the devices, and writes metrics, samples, checkpoints."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import itertools
import math
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from vdm import provenance, run as run_lib, sample as sample_lib, step as step_lib, workdir as workdir_lib
from vdm.contract import Batch, Params
from vdm.data import fingerprint
from vdm.data.batches import resident_arrays, resident_shapes, train_batches
from vdm.errors import Failed, UserError, require
from vdm.evaluation import estimator
from vdm.evaluation.elbo import make_elbo
from vdm.reporting import loggers, text
from vdm.reporting.log import Log, NoLog
from vdm.reporting.metrics import lacks_final
from vdm.runtime import checksums, devices, lock, randomness
from vdm.runtime.stop import Stop


def check(config: ConfigDict) -> None:
    """Raises UserError if a number of config.train, or of evaluation, is not accepted."""
    estimator.check(config)
    loggers.build(config.loggers)
    train = config.train
    require(config.seed >= 0, f"config.seed is {config.seed}; accepted: 0 or more.")
    for name in ("steps", "batch_size", "accumulate", "substeps", "keep"):
        require(train[name] >= 1, f"config.train.{name} is {train[name]}; accepted: 1 or more.")
    for name in ("log_every", "eval_every", "checkpoint_every", "sample_every"):
        value = train[name]
        require(value >= 0, f"config.train.{name} is {value}; accepted: 0 (only at the end) or more.")
    require(0 <= train.ema < 1, f"config.train.ema is {train.ema}; accepted: at least 0 and below 1.")
    count = devices.count()
    parts = count * train.accumulate
    require(
        train.batch_size % parts == 0,
        f"config.train.batch_size is {train.batch_size}; accepted: a multiple of {parts} "
        f"({count} devices × config.train.accumulate = {train.accumulate}), such as "
        f"{-(-train.batch_size // parts) * parts}.",
    )


def chunks(first: int, train: ConfigDict, substeps: int) -> Iterator[tuple[int, int]]:
    """Pairs (step, count) from step `first` to the end, one for each call of the device.

    A chunk never crosses a step at which something is due, and depends only on the config and `first`: a
    resumed run takes the same chunks as an uninterrupted one.
    """
    every = (train.log_every, train.eval_every, train.checkpoint_every, train.sample_every)
    step = first
    while step < train.steps:
        ends = [train.steps, step + substeps, *((step // n + 1) * n for n in every if n)]
        yield step, min(ends) - step
        step = min(ends)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains from the newest checkpoint of `workdir`, or from step 0, to config.train.steps.

    Writes config.json, metrics.jsonl, TensorBoard events, checkpoints/, elbo.png, samples/*.png, and at the
    end eval.json, samples.png and samples.npz.

    Raises:
      UserError: the config is not accepted, or differs from that of the workdir.
      Failed: the machine failed, for example by a full disk.
      Stopped: Ctrl-C, SIGTERM or SIGUSR1 asked the run to stop, and its state is saved.
    """
    check(config)
    with lock.hold(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        _train(config, workdir, newest_whole(workdir))


def newest_whole(workdir: pathlib.Path) -> int | None:
    """The step of the newest intact checkpoint, the same on all processes; None if there is no checkpoint.

    Raises:
      UserError: all checkpoints are damaged, or the run was imported and has no checkpoint.
    """
    newest: int | None = None
    if jax.process_index() == 0:
        steps = checksums.whole_steps(workdir, move=True)
        set_aside = run_lib.damaged(workdir)
        advice = (
            "Delete that folder to start again at step 0" if set_aside else "It was imported: import it again"
        )
        require(
            steps or not (set_aside or (workdir / "imported.json").exists()),
            f"{str(workdir)!r} has no checkpoint{set_aside}. {advice}, or give another --workdir.",
        )
        newest = steps[-1] if steps else None
    return devices.of_first_host(newest)


def _train(config: ConfigDict, workdir: pathlib.Path, newest: int | None) -> None:
    lead, train = jax.process_index() == 0, config.train
    if newest is not None:
        workdir_lib.check_config(workdir, config)
    first = newest or 0
    final = first == train.steps and lacks_final(workdir, first)
    if first >= train.steps and not final:
        print(f"{workdir}: finished, {first} of {train.steps} steps were taken before." * lead)
        return
    parts = run_lib.build(config)
    fingerprint.check(workdir / "data.json", parts.data, keep=lead)
    estimator.choose(config, parts.model)  # refuses impossible estimators before training
    evaluate = make_elbo(parts.model, config, parts.data)
    validate = make_validator(parts, config)
    sample = sample_lib.make_sampler(parts.model, config, parts.data)
    if lead:
        print(text.parameter_table(parts.like.params))
        print(describe(config, parts), flush=True)
    step_fn: Any = None
    batches: Iterator[Any] = iter(())
    wait: Callable[[], Any] = lambda: None
    try:
        if first < train.steps:
            step_fn, batches, wait = compile_step(config, parts, first)
    except (TypeError, ValueError, IndexError):
        parts.model.verify(parts.init().ema)  # names the faulty component, if there is one
        raise
    from vdm.runtime import checkpoint  # imported late, as importing Orbax is slow

    checkpoints = checkpoint.Checkpoints(workdir, train.keep)
    state, rest = (parts.init(), {}) if newest is None else checkpoints.restore(parts.like, first)
    parts.model.verify(state.ema)
    if lead:
        workdir_lib.write_config(workdir, config)
        provenance.write(workdir, first, sys.argv)
    log = (Log if lead else NoLog)(config, workdir, first, rest.get("seconds", 0.0), parts.data.spec)
    running = Running(rest.get("running"))
    data = step_data(config, parts)
    wait()
    log.say(f"{'starting' if newest is None else 'resuming'} at step {first} of {train.steps}")
    stop, stopping = Stop(), False

    try:
        for begin, count, batch in batches:
            state, metrics = step_fn(state, data, batch)
            step = begin + count
            running.add(metrics)
            if begin == first:
                jax.block_until_ready(state)
                require_finite(step, running.sums)
                require_possible(running.sums["loss"])
                log.start_clock(step)  # excludes compilation from the speed
            bpd = report(config, step, state.ema, running, evaluate, validate, sample, log)
            stopping = step < train.steps and stop.asked()
            if due(step, train.checkpoint_every, train.steps) or stopping:
                require_finite(step, running.sums)  # otherwise it would replace a good checkpoint
                rest = {"running": running.sums, "seconds": log.seconds()}
                checkpoints.save(step, devices.as_global(state), rest, bpd)
            if stopping:
                break
        if not stopping:
            checkpoints.settle()  # nothing is lost if the process is killed from here on
            stopping = stop.saved()
        if not stopping:
            finish(config, state.ema, evaluate, sample, log)
    except Exception:
        if jax.process_count() == 1:  # other processes may have died
            with contextlib.suppress(Failed):  # waits for the checkpoint that is being written
                checkpoints.close()
            log.close()
        raise
    stop.close()
    checkpoints.close()
    if stopping:
        log.say(f"stopped at step {step}, with a checkpoint; the same command resumes.")
    log.close()
    if stopping:
        raise stop.reason()


def make_validator(parts: run_lib.Parts, config: ConfigDict) -> Callable[..., Any] | None:
    """The evaluator of the validation images; None if there are no validation images."""
    if parts.data.validation is None:
        return None
    config = config.copy_and_resolve_references()
    config.eval.images = 0
    return make_elbo(parts.model, config, dataclasses.replace(parts.data, test=parts.data.validation))


def step_data(config: ConfigDict, parts: run_lib.Parts) -> Batch:
    """The `data` of the training step (step.make_step), on all devices."""
    images = resident_arrays(parts.data.train, config.data)
    return devices.replicate(images | {"root": randomness.root(config.seed)})


def compile_step(
    config: ConfigDict, parts: run_lib.Parts, first: int
) -> tuple[Callable[..., Any], Iterator[Any], Callable[[], Any]]:
    """Traces the training step over all devices, and compiles it in another thread.

    Tracing needs Python and compilation does not, so that meanwhile the state is made and images are read.

    Returns:
      the training step; its batches (step, count, batch) from the step `first` on; and a function that waits
      until the training step is compiled.
    """
    step = step_lib.make_step(parts.model, parts.objective, parts.optimizer, config, parts.data.spec.shape)
    step_fn = devices.over_devices(
        step,
        config.parallel,
        split_in=(False, False, True),
        split_out=(False, False),
        donate=(0,),
        batch_axis=1,
    )
    # A call cannot be interrupted, and on a CPU a step with large products takes seconds.
    slow = devices.platform() == "cpu" and parts.model.heavy
    batches = train_batches(
        parts.data.train, config, chunks(first, config.train, 1 if slow else config.train.substeps)
    )
    head = next(batches)
    data = devices.replicated_like(
        resident_shapes(parts.data.train, config.data) | {"root": randomness.root(config.seed)}
    )
    return (
        step_fn,
        itertools.chain([head], batches),
        devices.compile_ahead(step_fn, parts.like, data, head[-1]),
    )


def due(step: int, every: int, steps: int) -> bool:
    """Whether an action is due that is taken every `every` steps (0: never), and after the last step."""
    return step == steps or bool(every) and step % every == 0


def report(
    config: ConfigDict,
    step: int,
    ema: Params,
    running: "Running",
    evaluate: Any,
    validate: Any,
    sample: Any,
    log: Log | NoLog,
) -> float | None:
    """Reports what is due at a step; after the last step, `finish` does the rest.

    Returns:
      the bits/dim of the validation images, or without these of the test images, which select the best
      checkpoint; None if they were not evaluated at this step.

    Raises:
      UserError: the loss is not finite.
    """
    train = config.train
    if due(step, train.log_every, train.steps):
        means = running.means()
        log.train(step, means)
        require_finite(step, means)
        require_possible(means["loss"])
    log.progress(step)
    bpd = None
    if due(step, train.eval_every, train.steps):
        # The same number of passes and the same noise at each step, so that the points are comparable.
        estimate, _ = evaluate(ema, config.eval.passes_in_training)
        log.test(step, estimate)
        if validate:
            estimate = validate(ema, config.eval.passes_in_training)[0]
            log.validation(step, estimate)
        bpd = estimate.mean["bpd"]
    if step < train.steps and due(step, train.sample_every, train.steps):
        log.samples(step, sample(ema))
    if due(step, train.eval_every, train.steps) or due(step, train.sample_every, train.steps):
        log.start_clock(step)
    return bpd


def finish(config: ConfigDict, ema: Params, evaluate: Any, sample: Any, log: Log | NoLog) -> None:
    """Draws the last samples, and evaluates the final estimate, after the last checkpoint."""
    step = config.train.steps
    log.say("drawing samples")
    log.samples(step, sample(ema))
    log.say("evaluating")
    log.end(step, evaluate(ema, config.eval.passes, progress=jax.process_index() == 0)[0])


def describe(config: ConfigDict, parts: run_lib.Parts) -> str:
    """One line on the model and the data of the run."""
    count, kind = devices.count(), jax.devices()[0].device_kind
    data = parts.data
    return (
        f"{config.data.name}, {data.train.size:,} training and "
        f"{data.test.size:,} test images of {' × '.join(map(str, data.spec.shape))}, "
        f"{data.spec.vocab_size} levels; {count} × {kind}, {config.parallel}"
    )


def require_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raises UserError if a training metric, a mean or a sum, is not finite."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not wrong:
        return
    what = "loss" if "loss" in wrong else wrong[0]
    terms = [name for name in wrong if name not in step_lib.OTHER_METRICS]
    of_terms = f" (of its terms {', '.join(terms)})" if terms and what == "loss" else ""
    raise UserError(
        f"the {what} is {metrics[what]}{of_terms} at step {step}: training has diverged, or a component "
        "gives NaN or infinity (for the term diffusion: the network, the parameterisation or the objective). "
        "Lower config.optimizer.learning_rate, set config.optimizer.clip, or check γ(0) and γ(1) of a custom "
        "schedule, and give another --workdir. The earlier checkpoints are kept.",
    )


def require_possible(loss: float) -> None:
    """Raises UserError if the mean loss of some steps, the ELBO for every objective, is below 0."""
    require(
        loss >= 0,
        f"the ELBO of the training images is {loss:.4g} nats, which is impossible: no probability of "
        "discrete values exceeds 1. The `draw` or the `bound` of the model omits a term, or gives it the "
        "wrong sign.",
    )


class Running:
    """Sums of the metrics since they were last written, exact across a resume.

    Device arrays are kept until a sum is read, so that the host does not wait.
    """

    def __init__(self, sums: dict[str, float] | None):
        self._sums = sums or {"count": 0}
        self._pending: list[Any] = []

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds the metrics of a chunk, [steps] each."""
        self._pending.append(metrics)

    @property
    def sums(self) -> dict[str, float]:
        """{name: float}, and "count"; for JSON, which keeps floats exactly."""
        for metrics in self._pending:
            values = jax.device_get(metrics)
            for name, value in values.items():
                for one in value:
                    self._sums[name] = self._sums.get(name, 0.0) + float(one)
            self._sums["count"] += len(values["loss"])
        self._pending = []
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        """{name: mean}; resets the sums."""
        sums = self.sums
        count = sums.pop("count")
        self._sums = {"count": 0}
        return {name: total / count for name, total in sums.items()}
