"""Files of the baselines: which belong together, what they are, and conversions that change no output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.baseline_files import converted, find_files, looks_like
from sgc_distiller.checkpoints import load_weights
from sgc_distiller.errors import UserError
from sgc_distiller.networks import dcgan, patch, resnet, srgan, stargan, unet

State = dict[str, Tensor]


def old_names(state: State) -> State:
    """Return weights of `MSRResNet` under the names of BasicSR v0.1."""
    return {n.replace("body.", "recon_trunk.").replace("conv_hr.", "HRconv."): t for n, t in state.items()}


def old_discriminator(seed: int = 0, nf: int = 2) -> State:
    """Return a discriminator as BasicSR v0.0 saves it: all convolutions have biases."""
    torch.manual_seed(seed)
    state: State = {}
    before = 3
    for layer in range(10):
        width = nf * min(2 ** (layer // 2), 8)
        place = 3 * layer - 1 if layer else 0
        state[f"features.{place}.weight"] = torch.randn(width, before, 3 + layer % 2, 3 + layer % 2) * 0.2
        state[f"features.{place}.bias"] = torch.randn(width)
        if layer:
            state[f"features.{place + 1}.weight"] = torch.rand(width) + 0.5
            state[f"features.{place + 1}.bias"] = torch.randn(width)
            state[f"features.{place + 1}.running_mean"] = torch.randn(width)
            state[f"features.{place + 1}.running_var"] = torch.rand(width) + 0.5
        before = width
    for place, shape in ((0, (100, 8 * nf)), (2, (1, 100))):
        state[f"classifier.{place}.weight"] = torch.randn(shape) * 0.3
        state[f"classifier.{place}.bias"] = torch.randn(shape[0])
    return state


def run_old_discriminator(state: State, x: Tensor, train: bool) -> Tensor:
    """Compute BasicSR v0.0's discriminator from its own entries."""
    for layer in range(10):
        place = 3 * layer - 1 if layer else 0
        conv, bn = f"features.{place}.", f"features.{place + 1}."
        x = F.conv2d(x, state[f"{conv}weight"], state[f"{conv}bias"], 1 + layer % 2, 1)
        if layer:
            kept = (state[f"{bn}running_mean"].clone(), state[f"{bn}running_var"].clone())
            x = F.batch_norm(x, *kept, state[f"{bn}weight"], state[f"{bn}bias"], train)
        x = F.leaky_relu(x, 0.2)
    x = F.leaky_relu(F.linear(x.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]), 0.2)
    return F.linear(x, state["classifier.2.weight"], state["classifier.2.bias"])


class TestConversions:
    def test_both_names_of_basicsr_load_into_either(self) -> None:
        network = srgan.MSRResNet(nf=2, nb=2)
        new = network.state_dict()
        old = old_names(new)
        assert set(old) != set(new)
        for given_state in (new, old, {f"module.{n}": t for n, t in old.items()}):
            for wanted in (new, old):
                found = converted(given_state, wanted)
                assert list(found) == list(wanted)
                assert all(torch.equal(found[n], wanted[n]) for n in wanted)

    @pytest.mark.parametrize("train", [True, False])
    def test_biases_before_batch_norms_are_folded_without_a_trace(self, train: bool) -> None:
        state = {n: t.double() for n, t in old_discriminator().items()}
        before = {n: t.clone() for n, t in state.items()}
        network = srgan.VGGDiscriminator(nf=2, size=32).double()
        load_weights(network, {f"module.{n}": t for n, t in state.items()}, "old.pth")
        x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
        found = network.train(train)(x)
        torch.testing.assert_close(found, run_old_discriminator(state, x, train), rtol=1e-9, atol=1e-9)
        assert all(torch.equal(state[n], before[n]) for n in before)
        assert torch.equal(network.conv0_0.bias, state["features.0.bias"])  # no norm follows: it stays

    def test_statistics_of_instance_norms_of_2018_are_dropped(self) -> None:
        network = resnet.ResnetGenerator(ngf=2, blocks=1)
        state = dict(network.state_dict())
        for norm in ("model.2", "model.10.conv_block.2", "model.10.conv_block.6"):
            for kind in ("running_mean", "running_var", "num_batches_tracked"):
                state[f"{norm}.{kind}"] = torch.zeros(2)
        assert list(converted(state, network.state_dict())) == list(network.state_dict())
        both = nn.ModuleDict({"G_A": network, "G_B": resnet.ResnetGenerator(ngf=2, blocks=1)})
        doubled = {f"{role}.{n}": t for role in ("G_A", "G_B") for n, t in state.items()}
        assert set(converted(doubled, both.state_dict())) == set(both.state_dict())
        keeps = {*network.state_dict(), "model.2.running_mean"}
        assert set(converted(state, keeps)) == keeps
        judge = patch.PatchDiscriminator(ndf=2, norm="instance")
        with_statistics = {**judge.state_dict(), "model.3.running_mean": torch.zeros(4)}
        assert list(converted(with_statistics, judge.state_dict())) == list(judge.state_dict())

    def test_statistics_of_batch_norms_are_kept_and_then_refused(self) -> None:
        state = patch.PatchDiscriminator(ndf=2).state_dict()
        found = converted(state, patch.PatchDiscriminator(ndf=2, norm="instance").state_dict())
        assert "model.3.running_mean" in found
        other = {"layer.0.running_mean": torch.zeros(2)}
        assert converted(other, {"layer.0.weight"}) == other

    @settings(max_examples=40, deadline=None)
    @given(
        state=st.dictionaries(st.text("abmodel.0123_", max_size=12), st.just(torch.ones(1)), max_size=5),
        expected=st.sets(st.text("abmodel.0123_", max_size=12), max_size=5),
    )
    def test_other_networks_stay_as_they_are(self, state: State, expected: set[str]) -> None:
        given_state = {n: t for n, t in state.items() if "module" not in n}
        assert converted(given_state, expected) == given_state


# A baseline's network, and what its weights are said to look like.
LOOKS: list[tuple[Any, str]] = [
    (dcgan.Generator(ngf=2), "DCGAN's generator (nc 1, nz 100, ngf 2, size 64)"),
    (dcgan.Discriminator(ndf=2), "DCGAN's discriminator (nc 1, ndf 2, size 64)"),
    (unet.UNetGenerator(ngf=1), "pix2pix's U-Net generator (input_nc 3, output_nc 3, ngf 1, num_downs 8)"),
    (
        resnet.ResnetGenerator(ngf=1),
        "CycleGAN's ResNet generator (input_nc 3, output_nc 3, ngf 1, blocks 9, dropout False)",
    ),
    (
        patch.PatchDiscriminator(6, ndf=1),
        "the patch discriminator of pix2pix and CycleGAN (input_nc 6, ndf 1, n_layers 3, norm batch)",
    ),
    (stargan.Generator(2), "StarGAN's generator (conv_dim 2, c_dim 5, repeat_num 6)"),
    (
        stargan.Discriminator(64, 2),
        "StarGAN's discriminator (image_size 64, conv_dim 2, c_dim 5, repeat_num 6)",
    ),
    (srgan.MSRResNet(nf=2), "SRGAN's generator MSRResNet (in_nc 3, out_nc 3, nf 2, nb 16, upscale 4)"),
    (
        srgan.SRResNet(nf=2),
        "SRGAN's generator SRResNet of BasicSR v0.0 (in_nc 3, out_nc 3, nf 2, nb 16, upscale 4)",
    ),
    (srgan.VGGDiscriminator(nf=2), "SRGAN's discriminator (in_nc 3, nf 2, size 128)"),
]


class TestLooks:
    @pytest.mark.parametrize(("network", "words"), LOOKS)
    def test_each_network_is_known_by_its_weights(self, network: nn.Module, words: str) -> None:
        state = network.state_dict()
        assert looks_like(state) == words
        assert looks_like({f"module.{n}": t for n, t in state.items()}) == words
        no_counts = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
        assert looks_like(no_counts) == words

    def test_older_names_are_known_too(self) -> None:
        assert srgan.discriminator_sizes(old_discriminator()) == {"in_nc": 3, "nf": 2, "size": 32}
        assert srgan.msrresnet_sizes(old_names(srgan.MSRResNet(nf=3, nb=2).state_dict())) == {
            **{"in_nc": 3, "out_nc": 3, "nf": 3, "nb": 2, "upscale": 4}
        }
        assert looks_like(old_names(srgan.MSRResNet(nf=2, nb=1).state_dict())).startswith(
            "SRGAN's generator MSR"
        )
        assert looks_like(old_discriminator()) == "SRGAN's discriminator (in_nc 3, nf 2, size 32)"

    def test_both_directions_of_cyclegan_are_known(self) -> None:
        for roles, network in (
            (("G_A", "G_B"), resnet.ResnetGenerator(ngf=1)),
            (("D_A", "D_B"), patch.PatchDiscriminator(ndf=1, norm="instance")),
        ):
            state = {f"{role}.{n}": t for role in roles for n, t in network.state_dict().items()}
            assert looks_like(state) == f"both of CycleGAN, each {looks_like(network.state_dict())}"

    def test_other_networks_look_like_nothing(self) -> None:
        for state in ({}, nn.Conv2d(1, 2, 3).state_dict(), {"G_A.x": torch.ones(1), "G_B.x": torch.ones(1)}):
            assert looks_like(state) == ""


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


class TestFolders:
    @pytest.mark.parametrize(
        ("names", "wanted"),
        [
            (
                "10000-G.ckpt 10000-D.ckpt 200000-G.ckpt 200000-D.ckpt 90000-G.ckpt 90000-D.ckpt",
                "200000-{}.ckpt G D",
            ),
            (
                "netG_epoch_9.pth netD_epoch_9.pth netG_epoch_24.pth netD_epoch_24.pth",
                "net{}_epoch_24.pth G D",
            ),
            ("latest_net_G.pth latest_net_D.pth 195_net_G.pth 195_net_D.pth", "latest_net_{}.pth G D"),
            ("latest_net_G.pth", "latest_net_{}.pth G"),
            ("facades_label2photo_net_G.pth", "facades_label2photo_net_{}.pth G"),
            ("5_net_G.pth 5_net_D.pth 15_net_G.pth 15_net_D.pth", "15_net_{}.pth G D"),
            (
                "latest_net_G_A.pth latest_net_G_B.pth latest_net_D_A.pth latest_net_D_B.pth",
                "latest_net_{}.pth D_A D_B G_A G_B",
            ),
            ("latest_net_G_A.pth latest_net_G_B.pth", "latest_net_{}.pth G_A G_B"),
            ("5000_G.pth 5000_D.pth 10000_G.pth 10000_D.pth", "10000_{}.pth G D"),
            ("latest_G.pth latest_D.pth 10000_G.pth 10000_D.pth", "latest_{}.pth G D"),
        ],
    )
    def test_the_newest_files_are_taken(self, names: str, wanted: str, tmp_path: Path) -> None:
        touch(tmp_path, *names.split(), "loss_log.txt", "train_opt.txt")
        pattern, *roles = wanted.split()
        assert find_files(tmp_path) == {role: tmp_path / pattern.format(role) for role in roles}

    def test_basicsr_calls_roles_in_lower_case(self, tmp_path: Path) -> None:
        touch(tmp_path, "net_g_5000.pth", "net_d_5000.pth", "net_g_latest.pth", "net_d_latest.pth")
        assert find_files(tmp_path) == {
            "G": tmp_path / "net_g_latest.pth",
            "D": tmp_path / "net_d_latest.pth",
        }
        assert find_files(touch(tmp_path / "b", "net_g_9.pth", "net_g_10.pth"))["G"].name == "net_g_10.pth"

    def test_other_folders_hold_nothing(self, tmp_path: Path) -> None:
        touch(tmp_path, "model.pth", "checkpoint.pth.tar", "G.ckpt", "x-G.ckpt", "net_g_.pth")
        (tmp_path / "5-G.ckpt").mkdir()
        assert find_files(tmp_path) == {}

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                "5_net_G_A.pth 5_net_D_A.pth",
                "expected 5_net_G_B.pth, 5_net_D_B.pth beside 5_net_D_A.pth, 5_net_G_A.pth",
            ),
            ("200000-D.ckpt", "expected 200000-G.ckpt beside 200000-D.ckpt"),
            ("200-G.ckpt 190-G.ckpt 190-D.ckpt", "expected 200-D.ckpt beside 200-G.ckpt"),
            ("190-G.ckpt 190-D.ckpt 200-D.ckpt", "expected 200-G.ckpt beside 200-D.ckpt"),
            ("net_d_latest.pth", "expected net_g_latest.pth beside net_d_latest.pth"),
            ("netD_epoch_3.pth", "expected netG_epoch_3.pth beside netD_epoch_3.pth"),
        ],
    )
    def test_half_folders_are_refused_naming_what_is_missing(
        self, names: str, message: str, tmp_path: Path
    ) -> None:
        touch(tmp_path, *names.split())
        with pytest.raises(
            UserError, match=f"holds half of a baseline's files: {re.escape(message)}; put it"
        ):
            find_files(tmp_path)

    def test_files_of_several_networks_are_refused(self, tmp_path: Path) -> None:
        touch(tmp_path, "latest_net_G.pth", "latest_net_G_A.pth", "5-G.ckpt")
        with pytest.raises(
            UserError,
            match=r"several networks \(5-G\.ckpt, latest_net_G\.pth, latest_net_G_A\.pth\); expected those",
        ):
            find_files(tmp_path)

    def test_files_of_several_trainings_are_refused(self, tmp_path: Path) -> None:
        touch(tmp_path, "maps_net_G.pth", "facades_net_G.pth")
        with pytest.raises(
            UserError,
            match=r"cannot tell which of facades_net_G\.pth, maps_net_G\.pth is meant; name one file",
        ):
            find_files(tmp_path)
