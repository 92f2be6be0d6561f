"""The loop: batches in, steps on the devices, numbers and pictures out; resumes anywhere."""

import math
import pathlib
import time

import jax
from tqdm import tqdm

from vdm import checkpoint, data as data_lib, elbo, evaluate, parallel, report
from vdm import run as run_lib, sample as sample_lib, step as step_lib
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
    due = [n for n in (train.log_every, train.eval_every, train.checkpoint_every) if n]
    due += [n for n in (train.sample_every,) if n]
    step = first
    while step < train.steps:
        ends = [train.steps, step + train.substeps, *((step // n + 1) * n for n in due)]
        yield step, min(ends) - step
        step = min(ends)


def run(config, workdir):
    """Trains from the newest checkpoint of `workdir`, or from the start, to config.train.steps.

    Leaves there config.json, metrics.jsonl, TensorBoard events, checkpoints/, elbo.png,
    samples/*.png, and at the end eval.json and samples.png.

    Raises:
      UserError: the config is not possible, or differs from that of the workdir.
    """
    workdir = pathlib.Path(workdir)
    lead = jax.process_index() == 0
    checkpoint.check_config(workdir, config)
    check(config)
    this = run_lib.build(config)
    train = config.train
    step_fn = parallel.over_devices(
        step_lib.make_step(this.model, this.optimizer, config, this.data.spec.shape),
        config.parallel,
        split_in=(False, False, True),
        split_out=(False, False),
        donate=(0,),
    )
    evaluator = evaluate.make_evaluator(this.model, config, this.data)
    sampler = sample_lib.make_sampler(this.model, config, this.data)

    checkpoints = checkpoint.Checkpoints(workdir, train.keep)
    state, rest = this.state, {"running": None, "seconds": 0.0}
    if checkpoints.latest() is None:
        if lead:
            checkpoint.write_config(workdir, config)
            print(report.parameter_table(state.params), flush=True)
    else:
        state, rest = checkpoints.restore(state, checkpoints.latest())
    first = int(state.step)
    running = Running(rest["running"])

    log = Log(config, workdir, first, rest["seconds"], this.data.spec.shape) if lead else None
    if first >= train.steps:
        if lead:
            log.say(f"{workdir}: finished, {first} of {train.steps} steps were taken before.")
    elif lead:
        log.say(describe(config, this))
        log.say(f"{'resuming at' if first else 'starting at'} step {first} of {train.steps}")

    schedule = list(chunks(first, config))
    resident = parallel.replicate(data_lib.resident(this.data.train, config)) if schedule else {}
    batches = data_lib.train_chunks(this.data.train, config, schedule) if schedule else ()

    def save(step, bpd=None):
        seconds = log.seconds() if lead else 0.0
        rest = {"running": running.sums, "seconds": seconds, "examples": step * train.batch_size}
        checkpoints.save(step, state, rest, bpd)

    def due(step, every):
        return every and step % every == 0 or step == train.steps and every

    step, saved = first, first
    try:
        for (begin, count), batch in zip(schedule, batches):
            state, metrics = step_fn(state, resident, batch)
            step = begin + count
            if begin == first and lead:
                jax.block_until_ready(state)
                log.start_clock(step)  # compilation is no part of the speed
            running.add(metrics)
            if due(step, train.log_every):
                means = running.means()
                if lead:
                    log.train(step, means)
                require_finite(step, means)
            elif lead:
                log.progress(step)
            bpd = None
            if due(step, train.eval_every):
                estimate = evaluator(state.ema, config.eval.passes_in_training)
                bpd = estimate.mean["bpd"]
                if lead:
                    log.test(step, estimate)
            if due(step, train.sample_every):
                samples = sampler(state.ema)
                if lead:
                    log.samples(step, samples, this.data.spec.vocab_size)
            if due(step, train.checkpoint_every) or step == train.steps:
                save(step, bpd)
                saved = step
            if lead and (due(step, train.eval_every) or due(step, train.sample_every)):
                log.start_clock(step)
    except KeyboardInterrupt:
        jax.block_until_ready(state)
        if step > saved:
            save(step)
        checkpoints.wait()
        if lead:
            log.say(f"\nstopped at step {step}, saved; the same command goes on from there.")
            log.close()
        raise
    if schedule and lead:
        log.say("training done; evaluating")
    checkpoints.wait()
    if schedule or not (workdir / "eval.json").exists():
        finish(config, workdir, state, evaluator, sampler, this, log)
    checkpoints.close()
    if lead:
        log.close()


def finish(config, workdir, state, evaluator, sampler, this, log):
    """The last evaluation, with all its passes, and the last samples."""
    estimate = evaluator(state.ema, config.eval.passes, progress=log is not None)
    samples = sampler(state.ema)
    if log is not None:
        evaluate.write(workdir / "eval.json", estimate, int(state.step))
        sample_lib.write(workdir, samples, this.data.spec.vocab_size)
        log.say(report.estimate_table(estimate))
        log.say(f"{workdir}: eval.json, samples.png, elbo.png, metrics.jsonl, checkpoints/")


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

    def __init__(self, config, workdir, first, seconds, shape):
        self._train = config.train
        self._workdir = workdir
        self._shape = shape
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

    def progress(self, step):
        """Moves the bar."""
        self._bar.update(step - self._bar.n)

    def train(self, step, means):
        """Writes the means of the training metrics since the last time."""
        bits = {
            name: float(elbo.bits_per_dim(value, self._shape))
            for name, value in means.items()
            if name != "grad_norm"
        }
        bpd = bits.pop("loss")
        now = time.monotonic()
        began, before = self._last
        if step == before:  # a first chunk as long as the interval: all there is to go by
            began, before = self._began, self._first
        rate = (step - before) / (now - began)
        self._last = (now, step)
        left = (self._train.steps - step) / rate
        timing = {"seconds": self.seconds(), "steps_per_second": rate}
        numbers = {"bpd": bpd, **bits, "grad_norm": means["grad_norm"]}
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
        report.save_curve(self._workdir / "elbo.png", self._writer.path)

    def samples(self, step, samples, vocab_size):
        """Draws samples."""
        path = self._workdir / "samples" / f"{step:08d}.png"
        report.save_samples(path, samples, vocab_size)
        self._writer.image(step, "samples", path)

    def close(self):
        """Closes the files."""
        self._bar.close()
        self._writer.close()


def duration(seconds):
    """Seconds as h:mm:ss."""
    seconds = int(round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
