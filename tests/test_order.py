"""The order of clips: a function of seed and position, shared out to processes, exact from any batch on."""

from itertools import islice

from train.order import Passes, Pick, chance_of

BUCKETS = [list(range(0, 11)), list(range(11, 16)), [16]]


def batches(count, **options):
    return list(islice(Passes(BUCKETS, **{"batch_size": 2, "seed": 0, **options}), count))


def test_each_pass_meets_every_clip_at_most_once_and_each_bucket_alone():
    per_pass = 11 // 2 + 5 // 2 + 1
    first, second = batches(2 * per_pass)[:per_pass], batches(2 * per_pass)[per_pass:]
    for pass_, run in enumerate((first, second)):
        assert all(pick.pass_ == pass_ for batch in run for pick in batch)
        seen = [pick.index for batch in run for pick in batch]
        assert sorted(set(seen)) == sorted(set(seen) | {16}) and len(set(seen)) == 10 + 4 + 1
        assert all(
            sum(batch[0].index in bucket and batch[1].index in bucket for bucket in BUCKETS) == 1 for batch in run
        )
    assert [b[0].index for b in first] != [b[0].index for b in second]


def test_every_clip_is_met_over_the_passes():
    assert {pick.index for batch in batches(200) for pick in batch} == set(range(17))


def test_the_order_follows_the_seed_and_goes_on_from_any_batch():
    assert batches(30) == batches(30) != batches(30, seed=1)
    for start in (1, 7, 8, 9, 23):
        assert batches(30 - start, start=start) == batches(30)[start:]


def test_processes_share_each_batch_out():
    whole = batches(12, batch_size=4)
    shares = [batches(12, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(pick for part in parts for pick in part)
        assert all(len(part) == 2 for part in parts)


def test_chance_depends_on_all_its_numbers():
    drawn = {chance_of(*numbers).initial_seed() for numbers in ((0, 1), (1, 0), (0, 0), (0, 1, 0), Pick(3, 4))}
    assert len(drawn) == 5
