"""A fact goes to another worker and comes back as it was; what is no fact is refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.feedback import Fact, FeedbackKind

FACT = Fact(7, 0, FeedbackKind.BOUNCE, "user-unknown", 1_800_000_000_000, "ab12", hard=True, status="5.1.1")

numbers = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        Fact,
        numbers,
        st.integers(0, 2**32),
        st.sampled_from(FeedbackKind),
        texts,
        numbers,
        texts,
        texts,
        st.booleans(),
        texts,
        st.none() | st.integers(200, 599),
        texts,
        texts,
        texts,
        texts,
    )
)
def test_there_and_back_as_json(fact: Fact) -> None:
    assert Fact.from_dict(orjson.loads(orjson.dumps(fact.to_dict()))) == fact


@pytest.mark.parametrize(
    "change",
    [
        {"message": "7"},
        {"message": -1},
        {"n": None},
        {"n": True},
        {"kind": "guess"},
        {"cls": 1},
        {"hard": "yes"},
        {"reply_code": "550"},
        {"extra": 1},
    ],
)
def test_what_is_no_fact_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a fact"):
        Fact.from_dict(FACT.to_dict() | change)


def test_a_fact_needs_its_parts() -> None:
    with pytest.raises(ValueError, match="not a fact"):
        Fact.from_dict({"kind": "bounce"})
