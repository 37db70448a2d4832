"""What is asked and what is answered, as `/openapi.json` describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from solid_ext.service.limits import ID_LENGTH, MOST_HISTORY, MOST_K, MOST_RULES

ItemId = (
    Annotated[StrictStr, Field(max_length=ID_LENGTH)]
    | Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
)
Count = Annotated[int, Field(strict=True, ge=1, le=MOST_K)]
SessionName = Annotated[StrictStr, Field(max_length=64)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendAsked(Asked):
    """The best items for a history, or for what a session has observed."""

    history: Annotated[list[ItemId], Field(max_length=MOST_HISTORY)] | None = None
    """Raw item ids, oldest first; none for a newcomer."""
    session: SessionName | None = None
    """In place of a history."""
    k: Count = 10
    exclude_history: StrictBool = True
    exclude: Annotated[list[ItemId], Field(max_length=MOST_RULES)] | None = None
    """Items never to recommend."""
    include: Annotated[list[ItemId], Field(max_length=MOST_RULES)] | None = None
    """The only items to recommend."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id that the model does not know."""
    reasons: StrictBool = False
    """Say of each item why, and of the history how the model sees it."""


class PersonalAsked(Asked):
    """The layers of a history, for a device."""

    history: Annotated[list[ItemId], Field(max_length=MOST_HISTORY)]
    """Raw item ids, oldest first; none for a newcomer."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id that the model does not know."""


class ObserveAsked(Asked):
    """An event of a session; without one, of a new one."""

    item: ItemId
    session: SessionName | None = None


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Item(Answer):
    item: Any
    """The raw id."""
    title: str


class Reason(Answer):
    """What gave a recommended item its place."""

    text: str
    parts: dict[str, float]
    """What each part of the model gave of the score; they add up to it."""
    similar: list[Item]
    """The items of the history that speak for it most."""
    semantic: int


class Recommended(Item):
    score: float
    """The logit."""
    reason: Reason | None = None


class Semantic(Answer):
    semantic: int
    typical: list[str]
    """Titles of its most popular items."""


class Seen(Item):
    semantic: Semantic
    read: bool
    """Whether the model reads it: the last few events of a history."""


class RecommendAnswer(Answer):
    model: str
    """Which model answered: it changes where the run was replaced."""
    items: list[Recommended]
    history: list[Seen] | None = None
    """With `reasons`: the history as the model sees it."""


class SimilarItem(Item):
    score: float


class SimilarAnswer(Answer):
    model: str
    items: list[SimilarItem]


class ItemsAnswer(Answer):
    items: list[Item]


class DeviceItems(Answer):
    items: list[Any]
    """The raw ids."""
    titles: list[str]


class ObserveAnswer(Answer):
    session: str
    events: int
    """How many events of the session are kept."""


class Example(Answer):
    name: str
    history: list[Item]


class ExamplesAnswer(Answer):
    examples: list[Example]


class Health(Answer):
    status: Literal["ok"]
    model: str
    items: int
    reload_failed: bool
    """Whether the run was replaced by something that could not be loaded; the model before it answers."""


class Refusal(Answer):
    detail: str
    """One sentence: name, expectation, and what was got."""
