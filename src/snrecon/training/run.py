"""Training of a network by any scheme."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from snrecon.errors import InputError, MissingExtraError
from snrecon.io.staging import made_folder
from snrecon.physics.precision import low_precision_pays
from snrecon.training.apply import start_from
from snrecon.training.batch import Batch
from snrecon.training.checkpoint import Earlier, cut_log, earlier_run, kept_weights
from snrecon.training.config import PRIORS, Config
from snrecon.training.config_check import check
from snrecon.training.config_file import load_config
from snrecon.training.gram import batch_gram
from snrecon.training.grid_check import check_grids
from snrecon.training.run_folder import require_unused, with_output
from snrecon.training.scores import nmse, sense_nmse
from snrecon.training.stream import (
    find_data,
    training_source,
    unlabelled_batch,
    validation_batches,
)

if TYPE_CHECKING:  # it needs the train extra
    from snrecon.training.module import Training

Progress = Callable[[int, int | None, str], None]


def train(
    config: str | Path | Config, *, resume: bool = False, replace: bool = False,
    progress: Progress | None = None
) -> Path:
    """Train as a configuration says and export the averaged weights.

    The output folder gets the weights (renewed at every interval), ``log.csv`` with the errors on
    training and validation measurements, ``baselines.csv`` with those of zero-filled and CG-SENSE,
    and ``last.ckpt``, from which a run is resumed. A folder that was trained into before is refused
    without ``resume`` or ``replace``; with ``replace`` it loses these files to the new run once its
    first step has worked. On an error before that, nothing is left behind.

    Args:
        config: The configuration, or the TOML file that holds it.
        resume: Continue from the last checkpoint in the output folder, if there is one. A run that
            has reached its limits stays as it is; larger limits continue it.
        replace: Give up the training that the output folder holds.
        progress: Called as ``progress(done, total, message)``, in thousandths of the run.

    Returns:
        Path of the exported ``.safetensors`` file.

    Raises:
        InputError: if the configuration, the images, or the checkpoint to continue from are at
            fault, or the output folder holds a training that is neither resumed nor replaced.
        Diverged: if a loss or the weights are no longer finite; the weights and the checkpoint of
            the last interval stay.
        MissingExtraError: if Lightning is not installed.
        KeyboardInterrupt: on Ctrl-C.
    """
    if isinstance(config, Config):
        check(config)
    else:
        config = load_config(config)
    config = with_output(config)
    continued = resume and (Path(config.output.folder) / "last.ckpt").exists()
    if not (continued or replace):
        require_unused(config.output)
    if config.trainer.threads > 0:
        torch.set_num_threads(config.trainer.threads)
    if config.scheme == "noise_predictor":
        from snrecon.training.noise_predictor import train_predictor

        with made_folder(Path(config.output.folder)):
            return train_predictor(config, use_bfloat16(config.trainer.precision), resume=resume,
                                   progress=progress)
    if config.scheme in PRIORS:
        from snrecon.training.prior import train_prior

        with made_folder(Path(config.output.folder)):
            return train_prior(config, use_bfloat16(config.trainer.precision), resume=resume,
                               progress=progress)
    try:
        import_module("lightning")
        from snrecon.training.module import Training
    except ImportError as error:
        raise MissingExtraError("Training", "train") from error
    torch.manual_seed(config.trainer.seed)
    folder = Path(config.output.folder)
    path = folder / f"{config.output.name}.safetensors"
    # What can be at fault comes before what is slow: weights, checkpoint, folder, data.
    module = Training(config, use_bfloat16(config.trainer.precision))
    if config.trainer.initial:
        start_from(config, module.network, module.average)
    checkpoint = folder / "last.ckpt"
    earlier = earlier_run(checkpoint) if resume and checkpoint.exists() else None
    if earlier is not None:
        earlier.check(config, module.network)
        if earlier.finished(config.trainer):
            return kept_weights(path)
    with made_folder(folder):
        logger = _logger(config.trainer.logger, folder)
        found = [find_data(config, split) for split in ("train", "validation")]
        check_grids(config, module.network, *found)
        module.validation = validation_batches(config, found=found[1])
        module.unlabelled = unlabelled_batch(config, found=found[1])
        baselines = _baselines(module.validation)
        module.source = training_source(config, found[0])

        def begin() -> None:
            """The files of another run are replaced once this one is known to work."""
            if earlier is None:
                for of_another_run in (folder / "log.csv", checkpoint):
                    of_another_run.unlink(missing_ok=True)
            else:
                cut_log(folder / "log.csv", earlier.step)
            (folder / "baselines.csv").write_text(baselines)

        _fit(module, folder, logger, earlier, begin, progress)
    return kept_weights(path)


def _fit(
    module: Training, folder: Path, logger: Any, earlier: Earlier | None,
    begin: Callable[[], None], progress: Progress | None,
) -> None:
    """Run Lightning; ``begin`` is called after the first step that worked."""
    import lightning

    config = module.config

    class Report(lightning.Callback):  # type: ignore[misc,unused-ignore]
        begun = False

        def on_train_batch_end(self, trainer: Any, *_: object) -> None:
            if not self.begun and trainer.is_global_zero:
                begin()
            self.begun = True
            if pressed:
                raise KeyboardInterrupt
            if progress is not None and trainer.is_global_zero:
                loss = module.recent[-1] if module.recent else float("nan")
                progress(int(1000 * module.share), 1000,
                         f"step {module.global_step}, loss {loss:.3f}")

    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="last", save_top_k=1, every_n_epochs=1,
        save_on_train_epoch_end=True, enable_version_counter=False)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # hardware lists and advertisements
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers
        trainer = lightning.Trainer(
            accelerator="auto", devices=config.trainer.devices, max_epochs=-1,
            logger=logger, callbacks=[keep, Report()],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            gradient_clip_val=config.trainer.clip)
        with _interruptible() as pressed:
            trainer.fit(module, ckpt_path=None if earlier is None else str(earlier.path),
                        weights_only=False)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Ctrl-C as a KeyboardInterrupt at the end of the block, whatever became of it within.

    Lightning ends the process, which is not for a library to do; and Python drops what is raised
    while an object is deleted, which the workers of an interval are for a good while. The list
    holds the signals that came, so that a step can look.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    ours = callable(before) and threading.current_thread() is threading.main_thread()

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if callable(before):
            before(number, frame)

    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    except BaseException as error:
        ended = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
        if pressed or ended:
            raise KeyboardInterrupt from error
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def use_bfloat16(precision: str) -> bool:
    """Whether convolutions run in bfloat16: as told, or where the processor has them."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return low_precision_pays(torch.device("cuda"))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(probe())


def _logger(kind: str, folder: Path) -> Any:
    """Lightning's logger beside the log that is always written, or False."""
    if kind != "tensorboard":
        return False
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ImportError as error:
        raise InputError("trainer.logger = 'tensorboard' needs the package tensorboard: "
                         "pip install tensorboard.") from error


def _baselines(validation: dict[float, Batch]) -> str:
    """The errors of zero-filled and CG-SENSE as the text of a table."""
    lines = ["acceleration,zero_filled_nmse,sense_nmse"]
    for rate, batch in validation.items():
        zero = float(nmse(batch.b, batch.target).mean())
        sense = sense_nmse(batch.b, batch_gram(batch.maps, batch.mask), batch.target)
        lines.append(f"{rate:g},{zero:.6g},{float(sense.mean()):.6g}")
    return "\n".join(lines) + "\n"
