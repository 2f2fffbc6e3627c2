"""What chance has for a clip: of the seed, the clip and the pass alone, wherever it is drawn."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from train.chance import WithChance, to_device
from train.order import HELD_OUT, PADDING, Pick, as_pick, generator_of

SHAPE = (2, 3, 4, 5)


class Clips(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, key):
        index, pass_ = as_pick(key)
        return {"latents": torch.zeros(1, 2, 2, 1 + index), "prompt": f"clip {index}", "index": index, "pass": pass_}


def test_a_training_clip_has_what_its_generator_gives_in_turn():
    item = WithChance(Clips(), 7, SHAPE)[Pick(3, 2)]
    generator = generator_of(7, 3, 2)
    expected = [torch.rand(1, generator=generator)[0], torch.randn(1, generator=generator)[0]]
    expected.append(torch.randn(SHAPE, generator=generator))
    for name, value in zip(("uniform", "normal", "noise"), expected, strict=True):
        assert torch.equal(item[name], value), name
    assert item["prompt"] == "clip 3" and (item["index"], item["pass"]) == (3, 2)


@pytest.mark.parametrize("pass_", [HELD_OUT, PADDING])
def test_a_clip_of_validation_has_the_same_noise_whenever_it_is_met_and_nothing_else(pass_):
    clips = WithChance(Clips(), 7, SHAPE)
    item = clips[Pick(3, pass_)]
    assert torch.equal(item["noise"], clips[3]["noise"]) and not {"uniform", "normal"} & item.keys()
    assert torch.equal(item["noise"], torch.randn(SHAPE, generator=generator_of(7, 3)))


def test_seed_clip_and_pass_each_change_it_and_latents_give_the_shape():
    cases = (0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)
    drawn = [WithChance(Clips(), seed, SHAPE)[Pick(i, p)]["noise"] for seed, i, p in cases]
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == 4
    clips = WithChance(Clips(), 0, None)
    assert [clips[Pick(i, 0)]["noise"].shape for i in (0, 4)] == [(1, 2, 2, 1), (1, 2, 2, 5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_the_same_in_whatever_process_and_batch(workers):
    picks = [Pick(i, i % 2) for i in range(8)]
    clips = WithChance(Clips(), 5, SHAPE)
    alone = torch.stack([clips[pick]["noise"] for pick in picks])

    def without_latents(items):
        return torch.stack([item["noise"] for item in items])

    for size in (1, 3):
        loader = DataLoader(clips, size, sampler=picks, num_workers=workers, collate_fn=without_latents)
        assert torch.equal(torch.cat([*loader]), alone)


def test_what_decides_on_a_pass_stays_on_the_cpu():
    batch = {name: torch.ones(2) for name in ("latents", "text", "noise", "uniform", "normal", "index", "pass")}
    moved = to_device({**batch, "prompt": ["a", "b"]}, torch.device("meta"))
    assert moved["prompt"] == ["a", "b"]
    assert {name for name in batch if moved[name].is_meta} == {"latents", "text", "noise"}
