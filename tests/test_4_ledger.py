"""All views compared at once, against a look at each view by itself."""

import random

import pytest

from raidfs.check.ledger import INF, Ledger, Views
from raidfs.store.meta import Version

EPOCHS = (3, 4, 9, 20)


def versions(dice, count):
    """Lives that begin and end at random, some of them still going on."""
    for _ in range(count):
        born = dice.randrange(1, 25)
        yield Version(born, dice.choice((INF, born + 1, born + dice.randrange(1, 20))))


@pytest.mark.parametrize("epochs", [(), (7,), EPOCHS])
def test_a_span_is_the_views_that_see_a_version(epochs):
    views = Views({epoch: f"s{epoch}" for epoch in epochs})
    for version in versions(random.Random(1), 300):
        first, end = views.span(version)
        seen = [view for view in range(views.present + 1) if first <= view < end]
        assert seen == [
            view
            for view, epoch in enumerate([*epochs, INF - 1])
            if version.born <= epoch < version.died
        ]
    assert views.where(views.present) == ""
    assert [views.where(view) for view in range(len(epochs))] == [
        f", in snapshot s{epoch}" for epoch in epochs
    ]


@pytest.mark.parametrize("seed", range(30))
def test_differences_are_those_of_each_view(seed):
    """What is told is the newest view in which something is wrong, with its numbers."""
    dice = random.Random(seed)
    views = Views({epoch: "" for epoch in EPOCHS})
    ledger, counts = Ledger(), {}
    for version in versions(dice, dice.choice((0, 1, 10, 60))):
        thing = dice.randrange(4), dice.randrange(2)
        amount, span = dice.randrange(3), views.span(version)
        which = dice.randrange(3)
        if which != 0:
            ledger.said(*thing, span, amount)
        if which != 1:
            ledger.found(*thing, span, amount)
        for view in range(*span):
            said, found = counts.get((thing, view), (0, 0))
            counts[thing, view] = said + amount * (which != 0), found + amount * (which != 1)

    def newest(wrong):
        differing = {}
        for (thing, view), (said, found) in sorted(counts.items()):
            if wrong(said, found):
                differing[thing] = (view, said, found)
        return [(*thing, *told) for thing, told in sorted(differing.items())]

    def told(differences):
        return [(d.key, d.sort, d.view, d.said, d.found) for d in differences]

    assert told(ledger.unequal()) == newest(lambda said, found: said != found)
    assert told(ledger.lacking()) == newest(lambda said, found: said and not found)
