"""The loop: batches in, steps on the devices, numbers and pictures out; resumes anywhere."""

import itertools
import math
import shutil
import signal
import sys
import time

import jax
from tqdm import tqdm

from vdm.data import dataset as data_lib
from vdm.diffusion import elbo
from vdm.evaluation import evaluate
from vdm.reporting import figures, report
from vdm.runtime import devices
from vdm import run as run_lib, sample as sample_lib, step as step_lib
from vdm.runtime import workdir as workdir_lib
from vdm.errors import require


def check(config):
    """Raises UserError where a number of config.train cannot be."""
    train = config.train
    for name in ("steps", "batch_size", "accumulate", "substeps", "keep"):
        require(train[name] >= 1, f"config.train.{name} is {train[name]}; accepted: 1 or more.")
    for name in ("log_every", "eval_every", "checkpoint_every", "sample_every"):
        require(
            train[name] >= 0, f"config.train.{name} is {train[name]}; accepted: 0 (never) or more."
        )
    require(
        0 <= train.ema < 1, f"config.train.ema is {train.ema}; accepted: 0 up to, but not, 1."
    )
    devices = jax.device_count()
    parts = devices * train.accumulate
    require(
        train.batch_size % parts == 0,
        f"config.train.batch_size is {train.batch_size}; accepted: a multiple of {parts} "
        f"({devices} devices × config.train.accumulate = {train.accumulate}), such as "
        f"{-(-train.batch_size // parts) * parts}.",
    )


def chunks(first, config):
    """Pairs (step, count) from step `first` to the end, for one call of the device each.

    A chunk never crosses a step at which something is due, and depends on the config and
    `first` alone: a resumed run takes the same chunks as one that never stopped.
    """
    train = config.train
    # A call cannot be interrupted, and one step of a U-Net takes seconds on a CPU.
    slow = jax.default_backend() == "cpu" and config.model.net.name == "unet"
    substeps = 1 if slow else train.substeps
    every = (train.log_every, train.eval_every, train.checkpoint_every, train.sample_every)
    step = first
    while step < train.steps:
        ends = [train.steps, step + substeps, *((step // n + 1) * n for n in every if n)]
        yield step, min(ends) - step
        step = min(ends)


def run(config, workdir):
    """Trains from the newest checkpoint of `workdir`, or from the start, to config.train.steps.

    Leaves there config.json, metrics.jsonl, TensorBoard events, checkpoints/, elbo.png,
    samples/*.png, and at the end eval.json, samples.png and samples.npz.

    Raises:
      UserError: the config is not possible, or differs from that of the workdir.
      KeyboardInterrupt: it was asked to stop, by Ctrl-C or SIGTERM, and has saved.
    """
    lead = jax.process_index() == 0
    train = config.train
    check(config)
    newest = workdir_lib.newest(workdir)
    if newest is not None:
        workdir_lib.check_config(workdir, config)
    first = newest or 0
    if first >= train.steps:
        if lead:
            print(f"{workdir}: finished, {first} of {train.steps} steps were taken before.")
        return
    this = run_lib.build(config)
    spec = this.data.spec
    step_fn = devices.over_devices(
        step_lib.make_step(this.model, this.optimizer, config, spec.shape),
        config.parallel,
        split_in=(False, False, True),
        split_out=(False, False),
        donate=(0,),
    )
    evaluator = evaluate.make_evaluator(this.model, config, this.data)
    sampler = sample_lib.make_sampler(this.model, config, this.data)

    if lead:
        print(report.parameter_table(this.like.params))
        print(describe(config, this), flush=True)
    batches = data_lib.train_chunks(this.data.train, config, first, chunks(first, config))
    batch = next(batches)
    # To trace the step needs Python and to compile it does not: so the rest is done beside that.
    shared = devices.replicated_like(data_lib.resident_like(this.data.train, config))
    wait = devices.compile_ahead(step_fn, this.like, shared, batch)
    from vdm.runtime import checkpoint  # only now, as Orbax takes a while to import

    checkpoints = checkpoint.Checkpoints(workdir, train.keep)
    if newest is None:
        state, rest = this.init(), {"running": None, "seconds": 0.0}
    else:
        state, rest = checkpoints.restore(this.like, first)
    log = Silent()
    if lead:
        workdir_lib.write_config(workdir, config)
        log = Log(config, workdir, first, rest["seconds"], spec)
    running = Running(rest["running"])
    resident = devices.replicate(data_lib.resident(this.data.train, config))
    stop = Stop()
    wait()
    log.say(f"{'starting' if newest is None else 'resuming'} at step {first} of {train.steps}")

    for (begin, count), batch in zip(chunks(first, config), itertools.chain([batch], batches)):
        state, metrics = step_fn(state, resident, batch)
        step, bpd = begin + count, None
        last = step == train.steps
        running.add(metrics)
        if begin == first:
            jax.block_until_ready(state)
            log.start_clock(step)  # compilation is no part of the speed

        def due(every):
            return last or every and step % every == 0

        if due(train.log_every):
            means = running.means()
            log.train(step, means)
            require_finite(step, means)
        log.progress(step)
        if due(train.eval_every):
            passes = config.eval.passes if last else config.eval.passes_in_training
            estimate, _ = evaluator(state.ema, passes, progress=last and lead)
            bpd = estimate.mean["bpd"]
            log.test(step, estimate)
        if due(train.sample_every):
            log.samples(step, sampler(state.ema))
        if last:
            log.end(step, estimate)
        stopping = not last and stop.asked(checkpoints, step)
        if due(train.checkpoint_every) or stopping:
            rest = {"running": running.sums, "seconds": log.seconds()}
            checkpoints.save(step, devices.as_global(state), rest, bpd)
        if stopping:
            checkpoints.close()
            log.say(f"stopped at step {step}, saved; the same command goes on from there.")
            log.close()
            raise KeyboardInterrupt
        if due(train.eval_every) or due(train.sample_every):
            log.start_clock(step)
    checkpoints.close()
    log.close()


class Stop:
    """Ctrl-C or SIGTERM ends the run after the chunk in hand, saved; a second ends it at once.

    Many processes must stop at the same step: there SIGTERM goes through JAX's own service,
    which they agree by, and Ctrl-C ends them at once.
    """

    def __init__(self):
        self._asked = False
        if jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._ask)

    def _ask(self, number, frame):
        self._asked = True
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.default_int_handler)
        tqdm.write("stopping after the steps in hand; once more to leave at once, unsaved")

    def asked(self, checkpoints, step):
        """Whether to stop after this step; the same on all processes."""
        return self._asked or jax.process_count() > 1 and checkpoints.preempted(step)


def describe(config, this):
    """One line on what is trained on what."""
    devices = jax.device_count()
    kind = jax.devices()[0].device_kind
    spec = this.data.spec
    return (
        f"{config.data.name}, {this.data.train.size:,} training and "
        f"{this.data.test.size:,} test images of {' × '.join(map(str, spec.shape))}, "
        f"{spec.vocab_size} levels; {devices} × {kind}, {config.parallel}"
    )


def require_finite(step, means):
    """Raises UserError where the loss is no number any more."""
    require(
        math.isfinite(means["loss"]),
        f"the loss is {means['loss']} at step {step}: training has diverged. Lower "
        "config.optimizer.learning_rate, or set config.optimizer.clip, and give another --workdir.",
    )


class Running:
    """Sums of the metrics since they were last written, exact across a resume.

    Device arrays are kept until a sum is asked for, so that the host does not wait.
    """

    def __init__(self, sums):
        self._sums = sums or {"count": 0}
        self._pending = []

    def add(self, metrics):
        """Adds the metrics of a chunk, each [steps]."""
        self._pending.append(metrics)

    @property
    def sums(self):
        """Name to float, and "count"; for JSON, which keeps floats exactly."""
        for metrics in self._pending:
            values = jax.device_get(metrics)
            for name, value in values.items():
                for one in value:
                    self._sums[name] = self._sums.get(name, 0.0) + float(one)
            self._sums["count"] += len(values["loss"])
        self._pending = []
        return dict(self._sums)

    def means(self):
        """Name to mean, and starts again."""
        sums = self.sums
        count = sums.pop("count")
        self._sums = {"count": 0}
        return {name: total / count for name, total in sums.items()}


class Log:
    """Tells a person how a run goes: a bar on a terminal, plain lines elsewhere, files, pictures."""

    def __init__(self, config, workdir, first, seconds, spec):
        self._train = config.train
        self._workdir = workdir
        self._spec = spec
        self._writer = report.Writer(workdir, first)
        self._bar = tqdm(
            total=config.train.steps, initial=first, unit="step", disable=None, dynamic_ncols=True
        )
        self._before = seconds
        self._began = time.monotonic()
        self._first = first
        self._last = (self._began, first)
        (workdir / "samples").mkdir(exist_ok=True)

    def seconds(self):
        """Seconds spent in this run, over all its starts."""
        return self._before + time.monotonic() - self._began

    def start_clock(self, step):
        """Counts the speed of training from here."""
        self._last = (time.monotonic(), step)

    def say(self, text):
        """Prints a line without breaking the bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def progress(self, step):
        """Moves the bar."""
        self._bar.update(step - self._bar.n)

    def train(self, step, means):
        """Writes the means of the training metrics since the last time."""
        bits = {
            name: float(elbo.bits_per_dim(value, self._spec.shape))
            for name, value in means.items()
            if name != "grad_norm"
        }
        bpd, draw_sd = bits.pop("loss"), bits.pop("draw_sd")
        now = time.monotonic()
        began, before = self._last
        if step == before:  # a first chunk as long as the interval: all there is to go by
            began, before = self._began, self._first
        rate = (step - before) / (now - began)
        self._last = (now, step)
        left = (self._train.steps - step) / rate
        timing = {"seconds": self.seconds(), "steps_per_second": rate}
        numbers = {"bpd": bpd, **bits, "draw_sd": draw_sd, "grad_norm": means["grad_norm"]}
        numbers = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self._writer.write(step, "train", numbers | timing)
        self.progress(step)
        terms = "  ".join(f"{name} {value:.4f}" for name, value in bits.items())
        if self._bar.disable:
            print(
                f"step {step}/{self._train.steps}  bpd {bpd:.4f}  {terms}  "
                f"{rate:.1f} steps/s  ETA {duration(left)}",
                flush=True,
            )
        else:
            self._bar.set_postfix_str(f"bpd {bpd:.3f}  {terms}")

    def test(self, step, estimate):
        """Writes an estimate over the test split, and draws the curve."""
        self._writer.write(step, "test", estimate.json() | {"seconds": self.seconds()})
        self.say(
            f"step {step}: test {estimate.mean['bpd']:.4f} ± {estimate.se['bpd']:.4f} bits/dim"
        )
        name = "−log p, exact" if estimate.exact else "ELBO"
        figures.save_curve(self._workdir / "elbo.png", self._writer.path, name)

    def samples(self, step, samples):
        """Draws samples, and keeps the newest as samples.png and samples.npz."""
        sample_lib.write(self._workdir, samples, self._spec.vocab_size)
        path = self._workdir / "samples" / f"{step:08d}.png"
        shutil.copyfile(self._workdir / "samples.png", path)
        self._writer.image(step, "samples", path)

    def end(self, step, estimate):
        """Writes and tells the last estimate."""
        evaluate.write(self._workdir / "eval.json", estimate, step)
        self.say(report.estimate_table(estimate))
        self.say(f"{self._workdir}: eval.json, samples.png, elbo.png, metrics.jsonl, checkpoints/")

    def close(self):
        """Closes the files."""
        self._bar.close()
        self._writer.close()


class Silent:
    """The Log of the processes that tell nothing."""

    def seconds(self):
        return 0.0

    def __getattr__(self, name):
        return lambda *args: None


def duration(seconds):
    """Seconds as h:mm:ss."""
    seconds = int(round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
