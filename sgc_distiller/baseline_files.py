"""Files that the baselines' own code saved: which belong together, what they hold, how entries are renamed.

StarGAN, PyTorch's DCGAN example, pytorch-CycleGAN-and-pix2pix (2018 and later) and BasicSR (v0.0, v0.1,
v1.x) all save plain state dictionaries, one network a file, under names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sgc_distiller.errors import UserError
from sgc_distiller.names import canonical
from sgc_distiller.networks import basicsr_names, dcgan, patch, resnet, srgan, stargan, unet

__all__ = ["converted", "find_files", "looks_like"]

# A norm of the junyanz networks; before mid-2018 also instance norms kept statistics, which nothing used.
_STATISTIC = re.compile(
    r"((?:[GD]_[AB]\.)?model\.\d+(?:\.conv_block\.\d+)?)\.(?:running_mean|running_var|num_batches_tracked)"
)


def converted(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return a baseline's state dictionary with the names that a network expects.

    Decided by names alone: BasicSR's generations are renamed into each other, convolutions' biases in front
    of batch norms (v0.0) are folded into the norms' running means, which changes no output, and statistics
    of instance norms without weights are dropped. What cannot be converted stays as it is.

    Args:
        state: State dictionary of a file; ``module.`` is stripped.
        expected: Names in the network's state dictionary, without the prefixes of wrappers.

    Returns:
        A new dictionary; tensors that did not change are those of ``state``.
    """
    state = {canonical(name): tensor for name, tensor in state.items()}
    state = basicsr_names.renamed(state, expected)
    return {name: tensor for name, tensor in state.items() if not _is_unused(name, state, expected)}


def _is_unused(name: str, state: Mapping[str, Tensor], expected: Collection[str]) -> bool:
    """Return whether an entry is a statistic of an instance norm that the network does not keep."""
    found = _STATISTIC.fullmatch(name)
    return found is not None and name not in expected and f"{found.group(1)}.weight" not in state


_Reader = Callable[[Mapping[str, Tensor]], "dict[str, Any] | None"]
_LOOKS: tuple[tuple[str, _Reader], ...] = (
    ("DCGAN's generator", dcgan.generator_sizes),
    ("DCGAN's discriminator", dcgan.discriminator_sizes),
    ("pix2pix's U-Net generator", unet.generator_sizes),
    ("CycleGAN's ResNet generator", resnet.generator_sizes),
    ("the patch discriminator of pix2pix and CycleGAN", patch.discriminator_sizes),
    ("StarGAN's generator", stargan.generator_sizes),
    ("StarGAN's discriminator", stargan.discriminator_sizes),
    ("SRGAN's generator MSRResNet", srgan.msrresnet_sizes),
    ("SRGAN's generator SRResNet of BasicSR v0.0", srgan.srresnet_sizes),
    ("SRGAN's discriminator", srgan.discriminator_sizes),
)


def looks_like(state: Mapping[str, Tensor]) -> str:
    """Return in words which baseline's network a state dictionary is of, or an empty string.

    Examples are ``StarGAN's generator (conv_dim 64, c_dim 5, repeat_num 6)`` and, for files of both
    directions, ``both of CycleGAN, each CycleGAN's ResNet generator (...)``.
    """
    state = {canonical(name): tensor for name, tensor in state.items()}
    for first, second in (("G_A.", "G_B."), ("D_A.", "D_B.")):
        if state and all(name.startswith((first, second)) for name in state):
            one = looks_like({n.removeprefix(first): t for n, t in state.items() if n.startswith(first)})
            return f"both of CycleGAN, each {one}" if one else ""
    for words, sizes_of in _LOOKS:
        sizes = sizes_of(state)
        if sizes is not None:
            return f"{words} ({', '.join(f'{name} {size}' for name, size in sizes.items())})"
    return ""


# How the baselines call their files: what comes before or after the role, and the roles' names.
_SCHEMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("StarGAN", re.compile(r"(?P<stem>\d+)-(?P<role>[GD])\.ckpt")),
    ("DCGAN", re.compile(r"net(?P<role>[GD])_epoch_(?P<stem>\d+)\.pth")),
    ("pix2pix or CycleGAN", re.compile(r"(?P<stem>.+)_net_(?P<role>[GD])\.pth")),
    ("CycleGAN", re.compile(r"(?P<stem>.+)_net_(?P<role>[GD]_[AB])\.pth")),
    ("BasicSR", re.compile(r"net_(?P<role>[gd])_(?P<stem>\d+|latest)\.pth")),
    ("BasicSR v0.x", re.compile(r"(?P<stem>\d+|latest)_(?P<role>[GD])\.pth")),
)


def find_files(folder: Path) -> dict[str, Path]:
    """Return the newest files of a baseline's networks in a folder, by role.

    The newest are those called ``latest``, else those with the highest number.

    Args:
        folder: Where a baseline's training left its checkpoints.

    Returns:
        ``G`` and, if it is there, ``D``; or ``G_A``, ``G_B`` and, if they are there, ``D_A``, ``D_B``;
        nothing if there is no file of a baseline.

    Raises:
        UserError: If files of several baselines or of several names are there, or one of a pair is missing.
    """
    found: dict[str, dict[str, dict[str, Path]]] = {}  # by scheme, stem and role
    for path in sorted(folder.iterdir()):
        for scheme, pattern in _SCHEMES:
            match = pattern.fullmatch(path.name)
            if match and path.is_file():
                stems = found.setdefault(scheme, {})
                stems.setdefault(match["stem"], {})[match["role"].upper()] = path
    if not found:
        return {}
    if len(found) > 1:
        examples = [next(iter(next(iter(stems.values())).values())).name for stems in found.values()]
        raise UserError(
            f"{folder}: holds files of several networks ({', '.join(examples)}); expected those of one "
            "baseline. Name one file, or move the others to another folder"
        )
    (scheme, stems), *_ = found.items()
    files = stems[_newest(folder, stems)]
    _refuse_halves(folder, files, stems, dict(_SCHEMES)[scheme])
    return dict(sorted(files.items()))


def _newest(folder: Path, stems: Mapping[str, Mapping[str, Path]]) -> str:
    """Return the stem of the newest files."""
    if "latest" in stems:
        return "latest"
    if len(stems) == 1 or all(stem.isdecimal() for stem in stems):
        return max(stems, key=lambda stem: int(stem) if stem.isdecimal() else 0)
    names = [path.name for files in stems.values() for path in files.values()]
    raise UserError(
        f"{folder}: cannot tell which of {', '.join(names[:6])}{' ...' if len(names) > 6 else ''} is meant; "
        "name one file, or leave those of one training in the folder"
    )


def _refuse_halves(
    folder: Path,
    files: Mapping[str, Path],
    stems: Mapping[str, Mapping[str, Path]],
    pattern: re.Pattern[str],
) -> None:
    """Refuse a discriminator without its generator, one of CycleGAN's two, and pairs of different steps."""
    everywhere = {role for roles in stems.values() for role in roles}
    both = any(role.endswith(("_A", "_B")) for role in everywhere)
    wanted = ["G_A", "G_B"] if both else ["G"]
    if any(role.startswith("D") for role in everywhere):
        wanted += ["D_A", "D_B"] if both else ["D"]
    there = [path.name for path in files.values()]
    missing = [_called(there[0], role, pattern) for role in wanted if role not in files]
    if missing:
        raise UserError(
            f"{folder}: holds half of a baseline's files: expected {', '.join(missing)} beside "
            f"{', '.join(there)}; put it there, move the odd ones to another folder, or name one file"
        )


def _called(name: str, role: str, pattern: re.Pattern[str]) -> str:
    """Return what the file of another role is called that belongs to the file ``name``."""
    match = pattern.fullmatch(name)
    assert match is not None
    start, end = match.span("role")
    return name[:start] + (role.lower() if match["role"].islower() else role) + name[end:]
