"""Compact weights come back bit for bit, take no more room than they must, and damaged ones are refused."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.compact_weights import packed, unpacked
from sgc_distiller.errors import UserError
from sgc_distiller.weight_files import compact_bytes, plain_bytes, read_weight_file

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.clone(memory_format=torch.contiguous_format).untyped_storage())


def sparse(count: int, density: float, seed: int = 0) -> Tensor:
    """Return random values of which exactly a share is not zero."""
    rng = np.random.default_rng(seed)
    values = np.zeros(count, np.float32)
    places = rng.permutation(count)[: round(count * density)]
    values[places] = rng.standard_normal(len(places)) + 3
    return torch.from_numpy(values)


def one(tensor: Tensor) -> tuple[str, dict[str, Tensor]]:
    tensors, entries = packed({"w": tensor})
    return entries["w"]["how"], {name.partition("/")[2]: part for name, part in tensors.items()}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_every_tensor_comes_back_bit_for_bit(shape: list[int], density: float, dtype: torch.dtype, seed: int):
    tensor = sparse(math.prod(shape), density, seed).to(dtype).reshape(shape)
    state = {"a.weight": tensor, "a/b": tensor.clone()}
    found = unpacked(*packed(state))
    assert list(found) == list(state)
    assert found["a.weight"].shape == tensor.shape
    assert found["a.weight"].dtype == dtype
    assert bits(found["a.weight"]) == bits(tensor)


@settings(max_examples=40, deadline=None)
@given(runs=st.lists(st.integers(0, 1300), min_size=1, max_size=8))
def test_gaps_of_any_length_come_back(runs: list[int]):
    """Also those of 254, 255, 256 and 510 zeros, where a byte is not enough."""
    flat = torch.cat([torch.cat([torch.zeros(run), torch.ones(1)]) for run in [*runs, 254, 255, 256, 510]])
    tensor = torch.cat([flat, torch.zeros(runs[0] + 2000)])
    how, parts = one(tensor)
    assert how == "gaps"
    assert len(parts["values"]) == len(runs) + 4
    assert torch.equal(unpacked(*packed({"w": tensor}))["w"], tensor)


def test_negative_zero_and_not_a_number_are_kept():
    tensor = torch.zeros(10_000)
    tensor[::97] = -0.0
    tensor[5] = float("nan")
    tensor[9_999] = float("inf")
    assert one(tensor)[0] == "gaps"
    assert bits(unpacked(*packed({"w": tensor}))["w"]) == bits(tensor)


@pytest.mark.parametrize(
    ("density", "how", "size"),
    [  # of 80,000 elements; bytes by hand
        (1.0, "dense", 320_000),
        (0.5, "bitmask", 10_000 + 160_000),
        (0.2, "bitmask", 10_000 + 64_000),
    ],
)
def test_the_smallest_way_is_taken(density: float, how: str, size: int):
    found, parts = one(sparse(80_000, density))
    assert found == how
    assert sum(part.numel() * part.element_size() for part in parts.values()) == size


def test_a_byte_a_value_wins_where_few_are_left():
    for density in (0.1, 0.02):
        how, parts = one(sparse(80_000, density))
        assert how == "gaps"
        count = round(80_000 * density)
        assert len(parts["values"]) == count
        assert count < len(parts["gaps"]) < count + 80_000 / 255 + 2


def test_a_mask_has_one_bit_an_element_lowest_first():
    tensor = torch.ones(2_003)
    tensor[[0, 3, 2_002]] = 0
    tensor[1_000:1_999] = 0
    how, parts = one(tensor)
    assert how == "bitmask"
    read = [(int(byte) >> bit) & 1 for byte in parts["mask"].tolist() for bit in range(8)]
    assert read == (tensor != 0).int().tolist() + [0] * 5


def test_half_precision_rounds_weights_and_leaves_norms_and_biases(tmp_path: Path):
    state = {"w": sparse(900, 0.3).reshape(30, 30) / 7, "b": torch.randn(30), "n": torch.tensor(3)}
    (tmp_path / "x.safetensors").write_bytes(compact_bytes(state, {}, half=True))
    found = read_weight_file(tmp_path / "x.safetensors")["state_dict"]
    rounded = torch.from_numpy(state["w"].numpy().astype(np.float16).astype(np.float32))
    assert torch.equal(found["w"], rounded)
    assert torch.equal(found["b"], state["b"])
    assert torch.equal(found["n"], state["n"])
    with pytest.raises(UserError, match="w: holds values beyond 65,504, the largest of half precision"):
        compact_bytes({"w": torch.full((2, 2), 7e4)}, {}, half=True)


def test_a_file_is_the_same_every_time_and_any_reader_opens_it(tmp_path: Path):
    state = {"w": sparse(5_000, 0.1), "v": torch.ones(3), "u": torch.zeros(4, 4)}
    about = {"task": "dcgan", "options": {"width": 8}}
    assert len({compact_bytes(state, about) for _ in range(8)}) == 1
    assert len({plain_bytes(state, about) for _ in range(8)}) == 1
    tensors = safetensors.torch.load(compact_bytes(state, about))
    assert torch.equal(tensors["w/values"], state["w"][state["w"] != 0])


def test_shared_and_strided_tensors_are_written(tmp_path: Path):
    base = torch.randn(6, 4)
    state = {"a": base, "b": base, "c": base.t(), "d": base[::2]}
    for content in (plain_bytes(state, {}), compact_bytes(state, {})):
        (tmp_path / "x.safetensors").write_bytes(content)
        found = load_checkpoint(tmp_path / "x.safetensors")["state_dict"]
        assert all(torch.equal(found[name], state[name]) for name in state)


TENSORS, ENTRIES = packed({"m": sparse(4_001, 0.5), "g": sparse(4_001, 0.02), "d": torch.ones(4)})


def spoilt(**changes: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return packed weights of which entries or tensors are replaced; ``None`` takes them out."""
    tensors, entries = dict(TENSORS), copy.deepcopy(ENTRIES)
    for name, value in changes.items():
        name = name.replace("_", "/")
        target: dict[str, Any] = tensors if "/" in name else entries
        target.pop(name)
        if value is not None:
            target[name] = value
    return tensors, entries


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {**ENTRIES[name], **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m_mask": None}, "m: expected a list of mask, got none"),
        ({"m_mask": TENSORS["m/mask"][:-1]}, "m: expected 2,..., values, got 2,...|m: expected"),
        ({"m_mask": TENSORS["m/mask"].float()}, "m: expected bytes as mask, got torch.float32"),
        ({"m_mask": TENSORS["m/mask"][None]}, "m: expected a list of mask, got a table"),
        ({"m_values": TENSORS["m/values"][:-1]}, "m: expected 2,000 values, got 1,999"),
        ({"g_gaps": TENSORS["g/gaps"][:0]}, "g: the list of gaps breaks off"),
        ({"g_gaps": torch.tensor([255] * 9, dtype=torch.uint8)}, "g: the list of gaps breaks off"),
        ({"g_gaps": TENSORS["g/gaps"][1:]}, "g: expected"),
        ({"g": None}, "g/values: is not described"),
        ({"g": entry("g", shape=[10**15])}, "g: expected 1,000,000,000,000,000 elements .* got 4,001"),
        ({"m": entry("m", shape=[4_000])}, "m: expected 4,000 elements for the shape .4000., got 4,008"),
        ({"d": entry("d", shape=[-2, -2])}, r"d: expected a shape, got \[-2, -2\]"),
        ({"d": entry("d", shape=[True, 4])}, r"d: expected a shape, got \[True, 4\]"),
        ({"d": entry("d", shape="4")}, "d: expected a shape, got '4'"),
        ({"d": entry("d", how="pickle")}, "d: expected to be stored as dense, bitmask or gaps, got 'pickle'"),
        ({"d": entry("d", dtype="int64")}, "d: expected the type torch.float32, got 'int64'"),
        ({"d": entry("d", dtype="load")}, "d: expected the type torch.float32, got 'load'"),
        ({"d": 3}, "d: expected to be stored as dense, bitmask or gaps, got None"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        unpacked(*spoilt(**changes))


class TestDamagedFiles:
    """Nothing but a `UserError`, which names the file, whatever is in it."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "x.safetensors").write_bytes(compact_bytes({"w": sparse(999, 0.2)}, {"task": "dcgan"}))
        return tmp_path / "x.safetensors"

    def test_cut_off(self, file: Path):
        whole = file.read_bytes()
        for size in (0, 5, 100, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(UserError, match=r"x.safetensors: cannot be read as weights, it is damaged"):
                load_checkpoint(file)

    def test_of_another_kind(self, file: Path):
        torch.save({"w": torch.ones(2)}, file)
        with pytest.raises(UserError, match="cannot be read as weights, it is damaged or of another kind"):
            load_checkpoint(file)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("[1]", "its header is no JSON object"),
            ("{", "cannot be read as weights"),
            ('{"compact": 1}', "its header does not say how the tensors are stored"),
            ('{"compact": 2}', "expected version 1 of compact weights, got 2; read it with the version of"),
            ('{"compact": 1, "tensors": {"w": {}}}', "w: expected to be stored as dense, bitmask or gaps"),
        ],
    )
    def test_with_another_header(self, file: Path, header: str, message: str):
        file.write_bytes(safetensors.torch.save({"w/values": torch.ones(3)}, {"sgc_distiller": header}))
        with pytest.raises(UserError, match=message):
            load_checkpoint(file)

    def test_without_tensors(self, file: Path):
        file.write_bytes(safetensors.torch.save({}, {"a": "b"}))
        with pytest.raises(UserError, match="expected weights, got a file without tensors"):
            load_checkpoint(file)

    @settings(max_examples=60, deadline=None)
    @given(place=st.integers(0, 10**6), value=st.integers(0, 255))
    def test_one_byte_is_another(self, place: int, value: int, tmp_path_factory: pytest.TempPathFactory):
        state = {"w": sparse(2_000, 0.05), "v": sparse(2_000, 0.4)}
        content = bytearray(compact_bytes(state, {"task": "dcgan"}))
        content[place % len(content)] = value
        file = tmp_path_factory.mktemp("byte") / "x.safetensors"
        file.write_bytes(content)
        with contextlib.suppress(UserError):
            found = load_checkpoint(file)["state_dict"]
            assert all(isinstance(tensor, Tensor) for tensor in found.values())


def test_others_files_load_as_plain_weights(tmp_path: Path):
    for metadata in (None, {"format": "pt"}, {"sgc_distiller": json.dumps({"task": 3, "options": []})}):
        file = tmp_path / "x.safetensors"
        safetensors.torch.save_file({"w": torch.ones(3)}, file, metadata)
        content = load_checkpoint(file)
        assert list(content) == ["state_dict"]
        assert torch.equal(content["state_dict"]["w"], torch.ones(3))
