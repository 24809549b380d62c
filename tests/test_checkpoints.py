"""Checkpoints: whole or not at all, never not-a-number, never code, and refusals that say why."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sgc_distiller import checkpoints, runs
from sgc_distiller.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    load_weights,
    plain_names,
    save_checkpoint,
    sha256,
)
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.networks import patch, resnet, srgan, stargan


class _Code:
    """Leaves a file behind when a checkpoint's code is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


class _Compiled(nn.Module):
    """Names its weights as what ``torch.compile`` returns does, without its long start."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network


def _network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))


class TestSaving:
    def test_what_is_saved_loads_again(self, tmp_path: Path, device: torch.device) -> None:
        network = _network().to(device)
        content = {
            "state_dict": network.state_dict(),
            "epoch": 3,
            "extras": {"scores": [{"epoch": 1, "value": 0.5, "low": None}], "text": "x", "flag": True},
        }
        save_checkpoint(tmp_path / "a.pth", content)
        loaded = torch.load(tmp_path / "a.pth", weights_only=True)
        assert loaded["extras"] == content["extras"]
        again = load_checkpoint(tmp_path / "a.pth", device)
        for name, value in network.state_dict().items():
            assert torch.equal(again["state_dict"][name], value)
            assert again["state_dict"][name].device.type == device.type

    @pytest.mark.parametrize("moment", ["write", "flush", "rename"])
    def test_a_failing_write_leaves_the_earlier_file(
        self, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "a.pth"
        save_checkpoint(file, {"state_dict": {"w": torch.zeros(2)}})
        before = file.read_bytes()

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        if moment == "write":
            monkeypatch.setattr(torch, "save", lambda content, target: (target.write(b"half"), fail()))
        elif moment == "flush":
            monkeypatch.setattr(runs.os, "fsync", fail)
        else:
            monkeypatch.setattr(runs.os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(file, {"state_dict": {"w": torch.ones(2)}})
        assert file.read_bytes() == before
        assert [item.name for item in tmp_path.iterdir()] == ["a.pth"]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("place", ["state_dict", "nested"])
    def test_values_that_are_not_finite_are_never_saved(
        self, bad: float, place: str, tmp_path: Path, device: torch.device
    ) -> None:
        file = tmp_path / "checkpoint.pth.tar"
        save_checkpoint(file, {"state_dict": {"w": torch.zeros(2)}})
        before = file.read_bytes()
        tensor = torch.tensor([0.0, bad], device=device)
        content: dict[str, Any] = {"state_dict": {"w": torch.zeros(2), "n": torch.tensor(3)}}
        if place == "nested":
            content["optimizer"] = {"state": {0: [{"exp_avg": tensor}]}}
        else:
            content["state_dict"]["w"] = tensor
        name = r"optimizer\.state\.0\.0\.exp_avg" if place == "nested" else r"state_dict\.w"
        with pytest.raises(
            NotANumberError,
            match=rf"checkpoint\.pth\.tar: not written, since {name} holds values that are not finite;",
        ):
            save_checkpoint(file, content)
        assert file.read_bytes() == before

    def test_hash_is_of_the_files_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class TestLoading:
    def test_code_in_a_file_is_not_run_and_not_recommended(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        torch.save({"state_dict": {"w": torch.ones(1)}, "x": _Code(trace)}, tmp_path / "a.pth")
        (tmp_path / "b.pth").write_bytes(pickle.dumps(_Code(trace), protocol=2))
        torch.save(nn.Linear(1, 1), tmp_path / "c.pth")
        for name, why in (
            ("a.pth", rf"it holds a {os.mkdir.__module__}\.mkdir, which could run code"),
            ("b.pth", r"it "),
            ("c.pth", r"it holds a torch\.nn\.modules\.linear\.Linear, which could run code"),
        ):
            with pytest.raises(UserError, match=rf"{name}: cannot be read as a checkpoint \({why}") as error:
                load_checkpoint(tmp_path / name)
            assert "weights_only" not in str(error.value)
            assert "\n" not in str(error.value)
        assert not trace.exists()

    def test_damaged_and_other_files_are_refused(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"w": torch.ones(100)}}, tmp_path / "whole.pth")
        whole = (tmp_path / "whole.pth").read_bytes()
        (tmp_path / "empty.pth").write_bytes(b"")
        (tmp_path / "text.pth").write_text("version: 1\npolicies: []\n")
        (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
        with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
            archive.writestr("a", "b")
        for name, why in (
            ("empty", "it is empty"),
            ("text", "it is damaged or of another kind"),
            ("cut", "it is damaged or of another kind"),
            ("zip", "it is damaged or of another kind"),
        ):
            with pytest.raises(UserError, match=rf"{name}\.pth: cannot be read as a checkpoint \({why}\)"):
                load_checkpoint(tmp_path / f"{name}.pth")

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 10**6), legacy=st.booleans())
    def test_a_damaged_file_raises_nothing_but_user_errors(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, legacy: bool
    ) -> None:
        file = tmp_path_factory.mktemp("damaged") / "a.pth"
        content = {"state_dict": {"w": torch.ones(30)}, "epoch": 3}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        damaged = bytearray(file.read_bytes())
        rng = random.Random(seed)
        for _ in range(rng.choice([1, 4, 20])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with contextlib.suppress(UserError):  # what was hit may be the numbers themselves
                load_checkpoint(file)

    def test_missing_files_and_folders_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            UserError, match=r"gone\.pth: no such file; expected a checkpoint or a run folder"
        ):
            load_checkpoint(tmp_path / "gone.pth")
        with pytest.raises(
            UserError, match=r"expected checkpoint\.pth\.tar in this folder, got none; .*begin it again"
        ):
            load_checkpoint(tmp_path)

    def test_a_run_folder_means_its_checkpoint(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "checkpoint.pth.tar", {"state_dict": {"w": torch.ones(1)}})
        assert find_checkpoint(tmp_path) == tmp_path / "checkpoint.pth.tar"
        assert find_checkpoint(str(tmp_path / "checkpoint.pth.tar")) == tmp_path / "checkpoint.pth.tar"
        assert load_checkpoint(tmp_path)["state_dict"]["w"].item() == 1

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_plain_state_dictionary_is_one(self, legacy: bool, tmp_path: Path) -> None:
        torch.save(_network().state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        loaded = load_checkpoint(tmp_path / "a.pth")
        assert list(loaded) == ["state_dict"]
        assert set(loaded["state_dict"]) == set(_network().state_dict())

    def test_dictionaries_of_another_kind_are_refused_with_their_first_keys(self, tmp_path: Path) -> None:
        torch.save({"netG": {"w": torch.ones(1)}, "step": 3}, tmp_path / "a.pth")
        with pytest.raises(
            UserError, match="expected the key 'state_dict' or tensors only, got the keys netG, step"
        ):
            load_checkpoint(tmp_path / "a.pth")
        for content, kind in ((torch.ones(2), "Tensor"), ([1, 2], "list"), ({}, "dict")):
            torch.save(content, tmp_path / "b.pth")
            with pytest.raises(UserError, match=f"or a state dictionary, got {kind}"):
                load_checkpoint(tmp_path / "b.pth")

    def test_an_unreadable_file_is_told_from_a_damaged_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.pth").write_bytes(b"x")

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(checkpoints.torch, "load", refuse)
        with pytest.raises(UserError, match=r"cannot be read as a checkpoint \(Permission denied\)"):
            load_checkpoint(tmp_path / "a.pth")


class TestWeights:
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", ""])
    def test_prefixes_of_wrappers_are_ignored_on_both_sides(self, prefix: str) -> None:
        source = _network(1)
        state = {prefix + name: value for name, value in source.state_dict().items()}
        assert set(plain_names(state)) == set(source.state_dict())
        for target in (_network(2), nn.DataParallel(_network(2)), _Compiled(_network(2))):
            load_weights(target, state, "x")
            for value, expected in zip(
                target.state_dict().values(), source.state_dict().values(), strict=True
            ):
                assert torch.equal(value, expected)

    def test_a_count_of_batches_that_old_files_lack_is_kept(self) -> None:
        network = _network(1)
        network[1].num_batches_tracked += 5
        state = {k: v for k, v in _network(2).state_dict().items() if not k.endswith("num_batches_tracked")}
        load_weights(network, state, "x")
        assert network[1].num_batches_tracked.item() == 5
        assert torch.equal(network[0].weight, _network(2)[0].weight)

    def test_weights_of_another_network_are_refused_by_their_first_names(self) -> None:
        network = _network()
        before = copy.deepcopy(network.state_dict())
        deeper = nn.Sequential(*_network(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        wider = _network(width=6)
        for state, message in (
            (deeper.state_dict(), r"not expected: 2\.weight, 2\.bias, 3\.weight \.\.\.\)"),
            (nn.Sequential(nn.Conv2d(1, 4, 3)).state_dict(), r"missing: 1\.weight, 1\.bias, 1\.running_mean"),
            (wider.state_dict(), r"0\.weight is \(6, 1, 3, 3\), expected \(4, 1, 3, 3\); 0\.bias"),
        ):
            with pytest.raises(
                UserError, match=r"f\.pth, generator: these are the weights of another network"
            ) as e:
                load_weights(network, state, "f.pth, generator")
            assert e.match(message)
            assert e.match("set the task, --image-size, --channels and --width to its own")
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name])

    def test_weights_that_are_no_numbers_are_refused(self) -> None:
        state = _network(1).state_dict()
        state["0.bias"] = torch.full_like(state["0.bias"], float("nan"))
        with pytest.raises(UserError, match=r"f\.pth: 0\.bias holds values that are not finite"):
            load_weights(_network(), state, "f.pth")
        for other in ({"0.weight": 3}, [1], {"0.weight": {"w": torch.ones(1)}}):
            with pytest.raises(UserError, match=r"f\.pth: expected tensors by name, got something else"):
                load_weights(_network(), other, "f.pth")


class TestBaselines:
    def test_what_basicsr_wraps_is_unwrapped(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        plain = {"w": torch.ones(1)}
        averaged = {"w": torch.zeros(1)}
        caplog.set_level(logging.INFO, "sgc_distiller")
        torch.save({"params": plain}, tmp_path / "plain.pth")
        assert load_checkpoint(tmp_path / "plain.pth") == {"state_dict": plain}
        assert not caplog.messages
        torch.save({"params": plain, "params_ema": averaged}, tmp_path / "both.pth")
        assert load_checkpoint(tmp_path / "both.pth") == {"state_dict": averaged}
        assert caplog.messages == [f"{tmp_path / 'both.pth'}: took the averaged weights, params_ema"]
        torch.save({"params": 3}, tmp_path / "number.pth")
        with pytest.raises(
            UserError, match="expected the key 'state_dict' or tensors only, got the keys params"
        ):
            load_checkpoint(tmp_path / "number.pth")

    def test_a_folder_of_a_baseline_gives_both_networks(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        generator, judge = stargan.Generator(1, 2, 1), stargan.Discriminator(8, 1, 2, 3)
        for number, factor in ((100, 0.0), (20, 1.0)):
            for role, network in (("G", generator), ("D", judge)):
                torch.save(
                    {f"module.{n}": t * factor for n, t in network.state_dict().items()},
                    tmp_path / f"{number}-{role}.ckpt",
                )
        caplog.set_level(logging.INFO, "sgc_distiller")
        assert find_checkpoint(tmp_path) == tmp_path
        content = load_checkpoint(tmp_path)
        assert set(content) == {"state_dict", "discriminator_state_dict"}
        assert caplog.messages == [f"{tmp_path}: read 100-D.ckpt, 100-G.ckpt"]
        load_weights(generator, content["state_dict"], "G")
        load_weights(judge, content["discriminator_state_dict"], "D")
        assert not any(p.any() for network in (generator, judge) for p in network.parameters())

    def test_a_generator_alone_comes_without_a_discriminator(self, tmp_path: Path) -> None:
        torch.save({"params": srgan.MSRResNet(nf=1, nb=1).state_dict()}, tmp_path / "net_g_latest.pth")
        assert list(load_checkpoint(tmp_path)) == ["state_dict"]

    def test_cyclegans_networks_are_told_apart_by_prefixes(self, tmp_path: Path) -> None:
        generators = {role: resnet.ResnetGenerator(ngf=1, blocks=1) for role in ("G_A", "G_B")}
        judges = {role: patch.PatchDiscriminator(ndf=1, norm="instance") for role in ("D_A", "D_B")}
        for role, network in {**generators, **judges}.items():
            torch.save(network.state_dict(), tmp_path / f"latest_net_{role}.pth")
        content = load_checkpoint(tmp_path)
        for networks, key in ((generators, "state_dict"), (judges, "discriminator_state_dict")):
            pair = nn.ModuleDict({role: copy.deepcopy(network) for role, network in networks.items()})
            for parameter in pair.parameters():
                nn.init.zeros_(parameter)
            load_weights(pair, content[key], "both")
            for role, network in networks.items():
                for name, value in network.state_dict().items():
                    assert torch.equal(pair[role].state_dict()[name], value)
        alone = load_checkpoint(tmp_path / "latest_net_G_B.pth")["state_dict"]
        load_weights(resnet.ResnetGenerator(ngf=1, blocks=1), alone, "one")
        with pytest.raises(
            UserError, match=r"missing: G_A\.model\.1\.weight.*look like CycleGAN's ResNet gen"
        ):
            load_weights(nn.ModuleDict(generators), alone, "one")
        with pytest.raises(
            UserError, match="they look like both of CycleGAN, each CycleGAN's ResNet generator"
        ):
            load_weights(generators["G_A"], content["state_dict"], "both")

    def test_a_run_folder_keeps_its_meaning_beside_a_baselines_files(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "checkpoint.pth.tar", {"state_dict": {"w": torch.ones(1)}})
        (tmp_path / "5-D.ckpt").touch()
        assert find_checkpoint(tmp_path) == tmp_path / "checkpoint.pth.tar"

    def test_damaged_files_in_a_folder_are_named(self, tmp_path: Path) -> None:
        for role in "GD":
            (tmp_path / f"net{role}_epoch_3.pth").write_bytes(b"x")
        with pytest.raises(UserError, match=r"netD_epoch_3\.pth: cannot be read as a checkpoint"):
            load_checkpoint(tmp_path)
        (tmp_path / "netG_epoch_3.pth").unlink()
        with pytest.raises(UserError, match=r"expected netG_epoch_3\.pth beside netD_epoch_3\.pth"):
            find_checkpoint(tmp_path)

    def test_weights_of_another_baseline_are_named(self) -> None:
        state = stargan.Generator(2).state_dict()
        with pytest.raises(
            UserError,
            match=(
                r"f\.ckpt, generator: these are the weights of another network \(missing: "
                r"conv_first\.weight, conv_first\.bias, body\.0\.conv1\.weight \.\.\.; not expected: "
                r"main\.0\.weight, main\.1\.weight, main\.1\.bias \.\.\.\); they look like "
                r"StarGAN's generator \(conv_dim 2, c_dim 5, repeat_num 6\); give the checkpoint"
            ),
        ):
            load_weights(srgan.MSRResNet(nf=1, nb=1), state, "f.ckpt, generator")
        with pytest.raises(
            UserError, match=r"another network \(main\.0\.weight is .*look like StarGAN's gen"
        ):
            load_weights(stargan.Generator(4), state, "f.ckpt")
        with pytest.raises(UserError, match=r"not expected: 9\.weight\); give the checkpoint"):
            load_weights(_network(), {**_network().state_dict(), "9.weight": torch.ones(1)}, "f.pth")
