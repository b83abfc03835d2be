from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.training.masks import KINDS, SHARES, SHARES_WITHOUT_SUBJECTS, Plan, draw_mask, plan_mask

SUBJECTS = np.zeros((2, 64, 96), dtype=bool)
SUBJECTS[0, 10:20, 5:30] = True
SUBJECTS[1, 40:64, 60:96] = True
NONE = np.zeros((0, 64, 96), dtype=bool)


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_a_mask_has_the_picture_s_size_and_is_never_empty(seed, kind):
    plan = Plan(kind, seed % 2 if kind == "subject" else None)
    mask = draw_mask(plan, SUBJECTS, (64, 96), np.random.default_rng(seed))
    assert mask.dtype == bool
    assert mask.shape == (64, 96)
    assert mask.any()
    again = draw_mask(plan, SUBJECTS, (64, 96), np.random.default_rng(seed))
    assert np.array_equal(mask, again)


@given(seed=st.integers(0, 2**32), subject=st.integers(0, 1))
def test_a_subject_s_mask_covers_it_with_a_margin_and_not_the_other(seed, subject):
    mask = draw_mask(Plan("subject", subject), SUBJECTS, (64, 96), np.random.default_rng(seed))
    assert mask[SUBJECTS[subject]].all()
    assert SUBJECTS[subject].sum() < mask.sum() < 6 * SUBJECTS[subject].sum()
    assert not mask[SUBJECTS[1 - subject]].all()


def test_an_invisible_subject_has_a_mask_anywhere():
    hidden = np.zeros((1, 64, 96), dtype=bool)
    assert draw_mask(Plan("subject", 0), hidden, (64, 96), np.random.default_rng(0)).all()


def test_everything_is_everything_and_a_border_touches_the_edge():
    assert draw_mask(Plan("everything"), NONE, (64, 96), np.random.default_rng(0)).all()
    for seed in range(50):
        mask = draw_mask(Plan("border"), NONE, (64, 96), np.random.default_rng(seed))
        edges = (mask[0].all(), mask[-1].all(), mask[:, 0].all(), mask[:, -1].all())
        assert any(edges)
        assert not mask.all()


@pytest.mark.parametrize(("subjects", "shares"), [(2, SHARES), (0, SHARES_WITHOUT_SUBJECTS)])
def test_kinds_of_masks_have_their_shares(subjects, shares):
    assert sum(shares) == pytest.approx(1)
    rng = np.random.default_rng(0)
    plans = [plan_mask(subjects, rng) for _ in range(4000)]
    drawn = Counter(plan.kind for plan in plans)
    for kind, share in zip(KINDS, shares, strict=True):
        assert drawn[kind] / len(plans) == pytest.approx(share, abs=0.03)
    assert {plan.subject for plan in plans if plan.kind == "subject"} == set(range(subjects))
