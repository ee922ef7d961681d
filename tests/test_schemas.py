"""The schemas: a person sets what is theirs to set, and sees everything."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from pydantic import BaseModel, ValidationError

from ingestd import schemas
from ingestd.models import (
    Alert,
    AuditLog,
    Base,
    Constituency,
    Election,
    FileProcessing,
    HourlyStats,
    Reject,
    Transaction,
)
from ingestd.schemas.base import Changes, Incoming

NOW = datetime(2024, 9, 6, 5, 0, tzinfo=UTC)
ENTITIES = ("Election", "Constituency", "Transaction", "Alert", "HourlyStats", "FileProcessing")
FROM_FILES_ALONE = ("Transaction", "HourlyStats", "FileProcessing")


def shape(name: str) -> type[BaseModel]:
    """A schema by its name."""
    found: type[BaseModel] = getattr(schemas, name)
    return found


@pytest.mark.parametrize("entity", ENTITIES)
def test_every_entity_has_its_four_schemas(entity: str) -> None:
    """Base is shared, Create and Update go in, Response comes out."""
    assert issubclass(shape(f"{entity}Create"), Incoming)
    assert issubclass(shape(f"{entity}Update"), Changes)
    assert issubclass(shape(f"{entity}Response"), shape(f"{entity}Base"))


@pytest.mark.parametrize("entity", ENTITIES)
def test_an_update_may_say_nothing(entity: str) -> None:
    """Every field of an update is optional, and what is not said is not set."""
    assert shape(f"{entity}Update")().model_dump(exclude_unset=True) == {}


@pytest.mark.parametrize("entity", FROM_FILES_ALONE)
@pytest.mark.parametrize("way", ["Create", "Update"])
def test_what_comes_from_files_alone_cannot_be_set(entity: str, way: str) -> None:
    """No field at all."""
    assert list(shape(f"{entity}{way}").model_fields) == []


def test_a_person_has_one_side_of_an_alert() -> None:
    """The engine's side is refused by name."""
    assert ["status", "notes", "assigned_to"] == list(schemas.AlertUpdate.model_fields)
    with pytest.raises(ValidationError, match="severity"):
        schemas.AlertUpdate.model_validate({"severity": "info"})


def test_the_counts_of_a_constituency_cannot_be_set() -> None:
    """Nor its contract, once it is there."""
    for name in ("votes_cast", "bulletins_issued", "registered_voters", "contract_id"):
        with pytest.raises(ValidationError, match=name):
            schemas.ConstituencyUpdate.model_validate({name: None})


@pytest.mark.parametrize("name", ["status", "notes"])
def test_what_is_never_null_cannot_be_emptied(name: str) -> None:
    """Leaving it out keeps it; null is refused before the database has to."""
    with pytest.raises(ValidationError, match=f"{name} can't be null"):
        schemas.AlertUpdate.model_validate({name: None})


def test_what_may_be_null_can_be_emptied() -> None:
    """Null is a value: nobody is assigned any more."""
    emptied = schemas.AlertUpdate(assigned_to=None)
    assert {"assigned_to": None} == emptied.model_dump(exclude_unset=True)


@pytest.mark.parametrize("status", ["open", "fraud", ""])
def test_an_alert_has_four_states(status: str) -> None:
    """Any other word is refused."""
    with pytest.raises(ValidationError, match="investigating"):
        schemas.AlertUpdate.model_validate({"status": status})


def test_an_election_needs_a_name_with_letters() -> None:
    """Spaces are none, and those around a name are taken away."""
    assert schemas.ElectionCreate(name="  Выборы ").name == "Выборы"
    with pytest.raises(ValidationError, match="more than spaces"):
        schemas.ElectionCreate(name="   ")


def test_an_election_ends_after_its_start() -> None:
    """The dates are in order where both are given."""
    with pytest.raises(ValidationError, match="before start_date"):
        schemas.ElectionUpdate(start_date=NOW, end_date=NOW.replace(day=5))


def test_a_time_needs_its_zone() -> None:
    """A form without one is sent back."""
    with pytest.raises(ValidationError, match="timezone"):
        schemas.ConstituencyUpdate.model_validate({"voting_start": "2024-09-06T08:00:00"})


@pytest.mark.parametrize("contract", ["", "short", "0" * 43, "C" * 45])
def test_a_contract_id_is_base58(contract: str) -> None:
    """32 to 44 letters and digits, without 0, O, I and l."""
    with pytest.raises(ValidationError, match="contract_id"):
        schemas.ConstituencyCreate(contract_id=contract)


def test_a_transaction_is_shown_as_it_is() -> None:
    """From the row itself; its hash in hexadecimal, its time in UTC."""
    row = Transaction(
        id=uuid4(),
        constituency_id=uuid4(),
        timestamp=NOW,
        status="accepted",
        tally="vote",
        type="vote",
        tx_type=104,
        version=4,
        file_id=uuid4(),
        line_number=7,
        content_hash=bytes([255, 0]),
        tx_id="65db",
        fee=0,
        fee_asset_id="",
        sender="",
        signature="",
        extra={"contractVersion": 1},
        raw_data=[{"key": "operation", "stringValue": "vote"}],
        operation_data=[],
    )
    shown = json.loads(schemas.TransactionResponse.model_validate(row).model_dump_json())
    assert "ff00" == shown["content_hash"]
    assert "2024-09-06T05:00:00Z" == shown["timestamp"]
    assert [{"key": "operation", "stringValue": "vote"}] == shown["raw_data"]


def test_unknown_stays_unknown() -> None:
    """A roll that nobody delivered is null, and so is what is not a number."""
    row = HourlyStats(
        id=uuid4(),
        constituency_id=uuid4(),
        hour=NOW,
        status="open",
        is_empty=False,
        coverage=float("nan"),
        **dict.fromkeys(
            (
                *("bulletins_issued", "votes_cast", "votes_rejected", "issues_rejected"),
                *("revotes", "rolled_back", "list_added", "list_removed", "transaction_count"),
                *("cumulative_bulletins", "cumulative_votes"),
            ),
            0,
        ),
    )
    shown = schemas.HourlyStatsResponse.model_validate(row)
    assert shown.coverage is None
    assert shown.bulletin_velocity is None


@pytest.mark.parametrize(
    ("response", "model"),
    [
        (schemas.AlertResponse, Alert),
        (schemas.ConstituencyResponse, Constituency),
        (schemas.HourlyStatsResponse, HourlyStats),
        (schemas.TransactionResponse, Transaction),
        (schemas.ElectionResponse, Election),
        (schemas.RejectResponse, Reject),
        (schemas.AuditLogResponse, AuditLog),
    ],
)
def test_a_response_hides_nothing(response: type[BaseModel], model: type[Base]) -> None:
    """Every column is shown, so that a new one is not forgotten."""
    columns = {each.key for each in model.__mapper__.column_attrs}
    assert columns == set(response.model_fields)


def test_a_job_shows_all_but_its_inner_marks() -> None:
    """`stamp` and `touched` are how the pipeline remembers, and say nothing to a person."""
    columns = {each.key for each in FileProcessing.__mapper__.column_attrs}
    hidden = columns - set(schemas.FileProcessingResponse.model_fields)
    assert {"stamp", "touched"} == hidden
