"""Any network of one's own as a reconstruction: of images, or of k-space.

A function of k-space that is written by hand needs no adapter: ``noise_map`` takes any callable.
These do what nearly every network needs done around it: whitening, coil combination, SNR units,
batch axes, real and imaginary parts, and 3D scans plane by plane (:mod:`snrecon.recon.planes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.unet import complex_of
from snrecon.networks.varnet import root_mean_square
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import varying_axes
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import KSPACE, NOISE, ForwardModel, forward_model
from snrecon.recon.own_network import fitted
from snrecon.recon.planes import bind_planes
from snrecon.recon.snr_units import SnrUnits
from snrecon.recon.zero_filled import matched_filter_maps, root_sum_of_squares

Channels = Literal["pairs", "complex", "magnitude"]
Input = Literal["kspace", "mask", "maps"]
Output = Literal["image", "image_pairs", "kspace"]


def _evaluated(module: nn.Module) -> nn.Module:
    """The network in evaluation mode; InputError for what is not one."""
    if not isinstance(module, nn.Module):
        raise InputError(
            f"the network must be a torch.nn.Module, not {type(module).__name__}; a function of "
            "k-space is given to noise_map as it is."
        )
    return module.eval()


class ImageModule(Reconstructor):
    """A network of images on the zero-filled matched-filter image in SNR units.

    What the network takes and returns, ``batch`` being one or more:

    - ``channels="pairs"``: ``(batch, 2, ky, kx)`` real, real and imaginary part;
    - ``channels="complex"``: ``(batch, 1, ky, kx)`` complex;
    - ``channels="magnitude"``: ``(batch, 1, ky, kx)`` real; the image is real then.

    The image is the object in the units of the maps, exactly zero where all maps are.

    Args:
        module: The network; put into evaluation mode.
        channels: See above.
        normalise: Divide by the root mean square over the maps' support before the network and
            multiply after it, differentiated like everything else. Otherwise it sees SNR units.

    Raises:
        InputError: for what is no network, other ``channels``, and (when bound) a 3D grid without
            an axis along which the mask is constant, a scan whose noise is not known, or a network
            that returns another shape.
    """

    name = "image_module"

    def __init__(
        self, module: nn.Module, channels: Channels = "pairs", normalise: bool = True
    ) -> None:
        if channels not in ("pairs", "complex", "magnitude"):
            raise InputError(
                f"channels must be 'pairs', 'complex' or 'magnitude', not {channels!r}."
            )
        self.channels, self.normalise = channels, normalise
        self._module = _evaluated(module)

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        units = SnrUnits.of(scan)
        module = fitted(self._module, scan.kspace)

        def function(kspace: Tensor) -> Tensor:
            image = units.adjoint(kspace)
            z = image.reshape(-1, 1, *scan.grid)
            size = root_mean_square(z, units.support) if self.normalise else None
            z = z if size is None else z / size
            answer = self._apply(module, z)
            answer = answer if size is None else answer * size
            return answer.reshape(image.shape) * units.inverse

        return Bound(
            function,
            f"{self.name}:{type(self._module).__name__}",
            frozen=units.model.frozen,
            maps=units.model.maps,
            units=units.model.units,
            details={"channels": self.channels, "maps": units.model.maps_source},
        )

    def _apply(self, module: nn.Module, z: Tensor) -> Tensor:
        """``(batch, 1, ky, kx)`` complex to the same, real for magnitudes."""
        if self.channels == "pairs":
            x = torch.view_as_real(z.squeeze(1)).movedim(-1, 1)
            answer = _shaped(module(x), x.shape, "image").to(x.dtype)
            return complex_of(answer).unsqueeze(1)
        x = z if self.channels == "complex" else z.abs()
        return _shaped(module(x), x.shape, "image")


class KspaceModule(Reconstructor):
    """A network of k-space.

    What the network takes, in the order of ``inputs``, ``batch`` being one or more:

    - ``"kspace"``: ``(batch, coil, ky, kx, 2)`` real, real and imaginary part last; with
      ``pairs=False`` ``(batch, coil, ky, kx)`` complex. Zero where not sampled.
    - ``"mask"``: boolean ``(1, 1, ky, kx, 1)``; with ``mask_lines`` ``(1, 1, 1, ky, 1)`` for masks
      of full lines, with ``ky`` where ``readout_first`` puts it; no last axis with ``pairs=False``.
    - ``"maps"``: coil maps of the scan (or estimated, then frozen), as one k-space:
      ``(1, coil, ky, kx[, 2])``.

    What it returns:

    - ``output="image"``: ``(batch, ky, kx)`` or ``(batch, 1, ky, kx)``, real or complex;
    - ``output="image_pairs"``: ``(batch, [1,] ky, kx, 2)`` real;
    - ``output="kspace"``: as ``"kspace"`` above; combined by the maps (``combine="matched"``) or as
      root sum of squares (``"rss"``).

    Args:
        module: The network; put into evaluation mode.
        inputs: See above.
        output: See above.
        combine: See above.
        pairs: Real arrays with real and imaginary parts, instead of complex ones.
        whiten: Whiten the coils (and their maps); False for networks of data as stored.
        readout_first: Swap the two axes, so that arrays end in ``(kx, ky)`` as in fastMRI.
        mask_lines: See above.

    Raises:
        InputError: for unknown choices, and (when bound) a 3D grid without an axis along which the
            mask is constant, a scan whose noise is not known although it is to be whitened, a mask
            of other than full lines with ``mask_lines``, or a network that returns another shape.
    """

    name = "kspace_module"

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[Input] = ("kspace", "mask"),
        output: Output = "image",
        *,
        combine: Literal["matched", "rss"] = "rss",
        pairs: bool = True,
        whiten: bool = True,
        readout_first: bool = False,
        mask_lines: bool = False,
    ) -> None:
        unknown = [one for one in inputs if one not in ("kspace", "mask", "maps")]
        if unknown or "kspace" not in inputs:
            raise InputError(
                "the inputs of a network of k-space are 'kspace' and, if it takes them, 'mask' and "
                f"'maps', not {tuple(inputs)}."
            )
        if output not in ("image", "image_pairs", "kspace"):
            raise InputError(
                f"the output must be 'image', 'image_pairs' or 'kspace', not {output!r}."
            )
        if combine not in ("matched", "rss"):
            raise InputError(f"coils are combined by 'matched' or 'rss', not {combine!r}.")
        self.inputs, self.output, self.combine, self.pairs = tuple(inputs), output, combine, pairs
        self.whiten, self.readout_first, self.mask_lines = whiten, readout_first, mask_lines
        self._module = _evaluated(module)

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        if self.whiten:
            scan.require_noise()
        model = self._model(scan)
        module = fitted(self._module, scan.kspace)
        constants = {"mask": self._mask(scan)}
        if "maps" in self.inputs:
            constants["maps"] = self._turned(model.maps.unsqueeze(0))
        matched = self.output == "kspace" and self.combine == "matched"

        def function(kspace: Tensor) -> Tensor:
            measured = (model.whiten(kspace) * model.mask).reshape(-1, *scan.kspace.shape)
            turned = self._turned(measured)
            answer = module(*(constants.get(one, turned) for one in self.inputs))
            image = self._image(answer, measured, turned, model if matched else None)
            return image.reshape(*kspace.shape[:-3], *scan.grid)

        used = matched or "maps" in self.inputs
        details = {"output": self.output, "maps": model.maps_source if used else "none"}
        if self.output == "kspace":
            details["combine"] = self.combine
        return Bound(
            function,
            f"{self.name}:{type(self._module).__name__}",
            frozen=model.frozen if used else (),
            maps=matched_filter_maps(model.maps) if matched and self.whiten else None,
            units=self._units(model, matched),
            details=details,
        )

    def _units(self, model: ForwardModel, matched: bool) -> str:
        """What is known of them: an image is in whatever units the network chose."""
        if self.output != "kspace":
            return Bound.units
        if matched:
            return model.matched_filter_units if self.whiten else Bound.units
        return NOISE if self.whiten else KSPACE

    def _model(self, scan: Scan) -> ForwardModel:
        """The measurement in the coil basis of the network; maps are made only if needed."""
        scan = scan if self.whiten else replace(scan, noise=None)
        needed = "maps" in self.inputs or (self.output == "kspace" and self.combine == "matched")
        if scan.maps is None and not needed:
            scan = replace(scan, maps=torch.ones_like(scan.kspace))
        return forward_model(scan)

    def _mask(self, scan: Scan) -> Tensor:
        mask = scan.sampled
        if self.mask_lines:
            if any(axis != -2 for axis in varying_axes(mask)):
                raise InputError(
                    f"{scan.source}: this network takes masks of full readout lines only; use a "
                    "mask that varies along ky alone."
                )
            mask = mask[:, :1]
        mask = (mask.mT if self.readout_first else mask)[None, None]
        return mask.unsqueeze(-1) if self.pairs else mask

    def _turned(self, array: Tensor) -> Tensor:
        """Complex ``(..., ky, kx)`` as the network wants it."""
        array = array.mT if self.readout_first else array
        return torch.view_as_real(array.resolve_conj().contiguous()) if self.pairs else array

    def _image(
        self, answer: Tensor, measured: Tensor, turned: Tensor, model: ForwardModel | None
    ) -> Tensor:
        """``(batch, ky, kx)`` from what the network returned."""
        if self.output == "kspace":
            answer = _shaped(answer, turned.shape, "k-space")
            kspace = _to_complex(answer, measured) if self.pairs else answer
            kspace = kspace.mT if self.readout_first else kspace
            if model is None:
                everywhere = torch.ones(kspace.shape[-2:], dtype=torch.bool, device=kspace.device)
                return root_sum_of_squares(kspace, everywhere)
            return (model.maps.conj() * ifft(kspace, (-2, -1))).sum(dim=-3)
        grid = (measured.mT if self.readout_first else measured).shape[-2:]
        last = (2,) if self.output == "image_pairs" else ()
        wanted = torch.Size((measured.shape[0], *grid, *last))
        if answer.ndim == len(wanted) + 1 and answer.shape[1] == 1:
            answer = answer.squeeze(1)
        answer = _shaped(answer, wanted, "image")
        answer = _to_complex(answer, measured) if last else answer
        return answer.mT if self.readout_first else answer


def _to_complex(pairs: Tensor, like: Tensor) -> Tensor:
    """Pairs on the last axis, in the precision of ``like``."""
    return torch.complex(*pairs.to(like.real.dtype).unbind(-1))


def _shaped(answer: Tensor, wanted: torch.Size, what: str) -> Tensor:
    """The answer, if it has the shape that was documented."""
    if not isinstance(answer, Tensor) or answer.shape != wanted:
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"the network returned {found} where {what} of shape {tuple(wanted)} is expected; see "
            "the adapter's description of shapes."
        )
    return answer


def monai_varnet(module: nn.Module | None = None, cascades: int = 12) -> KspaceModule:
    """MONAI's end-to-end ``VariationalNetworkModel``: coils as stored, fastMRI's orientation,
    masks of full lines; a real root-sum-of-squares image.

    Args:
        module: A network of that class, with its weights. None: a new one of MONAI's default size,
            with random weights, as a shape to load them into.
        cascades: Of a new one.

    Raises:
        InputError: if a new one is wanted and MONAI is not installed.
    """
    if module is None:
        try:
            from monai.apps.reconstruction.networks.nets.coil_sensitivity_model import (
                CoilSensitivityModel,
            )
            from monai.apps.reconstruction.networks.nets.complex_unet import ComplexUnet
            from monai.apps.reconstruction.networks.nets.varnet import VariationalNetworkModel
        except ImportError as error:
            raise InputError("MONAI's VarNet needs MONAI: pip install monai.") from error
        built = VariationalNetworkModel(CoilSensitivityModel(), ComplexUnet(), cascades)
        module = built.requires_grad_(False)
    return KspaceModule(
        module, ("kspace", "mask"), "image", whiten=False, readout_first=True, mask_lines=True
    )


def direct_varnet(
    module: nn.Module | None = None, layers: int = 8, combine: Literal["matched", "rss"] = "rss"
) -> KspaceModule:
    """direct's ``EndToEndVarNet``: coils as stored with their maps (those of the scan, frozen if
    they were estimated), fastMRI's orientation; k-space, whose coil images are combined.

    Args:
        module: A network of that class, with its weights. None: a new one with random weights and
            direct's centred orthonormal transforms, as a shape to load them into.
        layers: Of a new one.
        combine: ``"rss"`` (as direct does) or ``"matched"``.

    Raises:
        InputError: if a new one is wanted and direct is not installed.
    """
    if module is None:
        try:
            from direct.data.transforms import fft2, ifft2
            from direct.nn.varnet.varnet import EndToEndVarNet
        except ImportError as error:
            raise InputError(
                "direct's VarNet needs the package direct; install it from its repository, or give "
                "the network."
            ) from error
        forward: Callable[..., Tensor] = fft2
        built = EndToEndVarNet(forward, ifft2, layers)
        module = built.requires_grad_(False)
    return KspaceModule(
        module,
        ("kspace", "mask", "maps"),
        "kspace",
        combine=combine,
        whiten=False,
        readout_first=True,
    )
