"""The order of clips: a function of seed and clips taken, whatever the batches and the number of processes."""

from collections import Counter
from itertools import islice

import pytest

from train.order import HELD_OUT, PADDING, HeldOut, Passes, Pick, generator_of

BUCKETS = [list(range(0, 11)), list(range(11, 16)), [16]]


def batches(count, **options):
    return list(islice(Passes(**{"buckets": BUCKETS, "batch_size": 2, "seed": 0, **options}), count))


def positions(count, **options):
    return list(islice(Passes(**{"buckets": BUCKETS, "batch_size": 2, "seed": 0, **options}).positions(), count))


def test_a_batch_is_of_one_bucket():
    for batch in batches(100, batch_size=3):
        assert sum(all(pick.index in bucket for pick in batch) for bucket in BUCKETS) == 1


def test_each_pass_meets_every_clip_once():
    met = Counter(pick for batch in batches(170) for pick in batch)
    assert set(met.values()) == {1}
    for pass_ in range(340 // 17 - 2):
        assert {pick.index for pick in met if pick.pass_ == pass_} == set(range(17))


def test_passes_are_shuffled_anew_and_buckets_keep_pace():
    orders = [
        [pick.index for batch in batches(60, buckets=[list(range(6))]) for pick in batch][i : i + 6] for i in (0, 6)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6)) and orders[0] != orders[1]
    for taken in positions(500):
        passes = [n / len(bucket) for n, bucket in zip(taken, BUCKETS, strict=True)]
        assert max(passes[:2]) - min(passes[:2]) <= 1 + 2 / 5


def test_a_single_clip_fills_batches_and_its_bucket_is_not_met_too_often():
    assert batches(2, buckets=[[0]], batch_size=3) == [
        [Pick(0, 0), Pick(0, 1), Pick(0, 2)],
        [Pick(0, 3), Pick(0, 4), Pick(0, 5)],
    ]
    met = Counter(pick.index for batch in batches(400, batch_size=4) for pick in batch)
    assert met[16] / met[0] == pytest.approx(1, abs=0.1)


def test_the_order_follows_the_seed_and_goes_on_from_any_batch():
    assert batches(30) == batches(30) != batches(30, seed=1)
    for start in (1, 7, 8, 9, 23):
        taken = positions(start)[-1]
        assert sum(taken) == 2 * start
        assert batches(30 - start, taken=taken) == batches(30)[start:]
        assert positions(30 - start, taken=taken) == positions(30)[start:]


def test_processes_share_each_batch_out():
    alone = batches(12, batch_size=4)
    shares = [batches(12, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(batch) == sorted(pick for part in parts for pick in part)
        assert all(len(part) == 2 for part in parts)


@pytest.mark.parametrize("buckets", [BUCKETS, [list(range(13))]])
def test_another_number_of_processes_leaves_out_no_clip_and_meets_none_twice(buckets):
    """6 batches of 2 on one process, 5 of 3 on each of two, 40 of 1 on each of three."""
    met, taken = Counter(), None
    for count, batch_size, world in ((6, 2, 1), (5, 3, 2), (40, 1, 3)):
        for rank in range(world):
            for batch in batches(count, buckets=buckets, batch_size=batch_size, rank=rank, world=world, taken=taken):
                met.update(batch)
        taken = positions(count, buckets=buckets, batch_size=batch_size, world=world, taken=taken)[-1]
    assert set(met.values()) == {1} and len(met) == sum(taken) == 12 + 30 + 120
    for bucket, count in zip(buckets, taken, strict=True):
        assert {pick for pick in met if pick.index in bucket and pick.pass_ < count // len(bucket)} == {
            Pick(index, pass_) for index in bucket for pass_ in range(count // len(bucket))
        }


@pytest.mark.parametrize(("clips", "batch_size", "world"), [(8, 4, 1), (7, 2, 2), (5, 3, 4), (1, 2, 3), (9, 1, 2)])
def test_validation_counts_each_clip_once_on_as_many_batches_everywhere(clips, batch_size, world):
    shares = [HeldOut(clips, batch_size, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1
    picks = [pick for share in shares for batch in share for pick in batch]
    assert sorted(pick.index for pick in picks if pick.pass_ == HELD_OUT) == list(range(clips))
    assert all(pick.pass_ in (HELD_OUT, PADDING) for pick in picks)


def test_a_generator_depends_on_all_its_numbers():
    drawn = {generator_of(*numbers).initial_seed() for numbers in ((0, 1), (1, 0), (0, 0), (0, 1, 0), Pick(3, 4))}
    assert len(drawn) == 5
