"""Training of a network by any scheme."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from snrecon.errors import InputError, MissingExtraError
from snrecon.training.batch import Batch
from snrecon.training.config import Config, check, load_config
from snrecon.training.gram import batch_gram
from snrecon.training.scores import nmse, sense_nmse
from snrecon.training.stream import training_source, validation_batches

Progress = Callable[[int, int | None, str], None]


def train(
    config: str | Path | Config, *, resume: bool = False, progress: Progress | None = None
) -> Path:
    """Train as a configuration says and export the averaged weights.

    The output folder gets the weights (renewed at every interval), ``log.csv`` with the errors on
    training and validation measurements, ``baselines.csv`` with those of zero-filled and CG-SENSE,
    and ``last.ckpt``, from which a run is resumed.

    Args:
        config: The configuration, or the TOML file that holds it.
        resume: Continue from the last checkpoint in the output folder, if there is one.
        progress: Called as ``progress(done, total, message)``, in thousandths of the run.

    Returns:
        Path of the exported ``.safetensors`` file.

    Raises:
        InputError: if the configuration or the images are at fault.
        MissingExtraError: if Lightning is not installed.
    """
    if isinstance(config, Config):
        check(config)
    else:
        config = load_config(config)
    try:
        import lightning

        from snrecon.training.module import Training
    except ImportError as error:
        raise MissingExtraError("Training", "train") from error
    if config.trainer.threads > 0:
        torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.trainer.seed)
    folder = Path(config.output.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: this folder cannot be made ({error.strerror}).") from error
    checkpoint = folder / "last.ckpt"
    resume = resume and checkpoint.exists()
    if not resume:
        (folder / "log.csv").unlink(missing_ok=True)
    validation = validation_batches(config)
    _write_baselines(folder / "baselines.csv", validation)
    source = training_source(config)
    module = Training(config, source, validation, use_bfloat16(config.trainer.precision))
    if config.trainer.initial:
        module.start_from(config.trainer.initial)

    class Report(lightning.Callback):  # type: ignore[misc,unused-ignore]
        def on_train_batch_end(self, trainer: object, *_: object) -> None:
            if progress is not None:
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
            logger=_logger(config.trainer.logger, folder), callbacks=[keep, Report()],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            gradient_clip_val=config.trainer.clip, reload_dataloaders_every_n_epochs=1)
        module.began = time.monotonic()
        trainer.fit(module, ckpt_path=str(checkpoint) if resume else None, weights_only=False)
    path = folder / f"{config.output.name}.safetensors"
    if module.recent:
        module.record()
    elif not config.trainer.patience:
        module.export(path)
    return path


def use_bfloat16(precision: str) -> bool:
    """Whether convolutions run in bfloat16: as told, or where the processor has them."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
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


def _write_baselines(path: Path, validation: dict[float, Batch]) -> None:
    lines = ["acceleration,zero_filled_nmse,sense_nmse"]
    for rate, batch in validation.items():
        zero = float(nmse(batch.b, batch.target).mean())
        sense = sense_nmse(batch.b, batch_gram(batch.maps, batch.mask), batch.target)
        lines.append(f"{rate:g},{zero:.6g},{float(sense.mean()):.6g}")
    path.write_text("\n".join(lines) + "\n")
