"""People are told of alerts at least once, and never of what no commit holds."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs

from ingestd.config import ConfigError, Notify, Settings, load_settings
from ingestd.errors import StorageFault, Undelivered
from ingestd.models import Alert, Notice
from ingestd.pipeline import outbox
from ingestd.pipeline.alerts import Settlement, alert_id
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.outbox import Pace, Waiting, Wanted
from ingestd.pipeline.rules import Finding, Severity
from ingestd.pipeline.step import Step
from ingestd.telling import message
from ingestd.telling.channels import channels_of, send_in_time, signature
from ingestd.telling.sender import Sender, Store, wanted_of
from ingestd.telling.teller import PutOff
from ingestd.telling.troubles import KNOWN, Troubles

from .conftest import Clock, Did, DropFile, Voting
from .hook import Hook, hook_server
from .oracle import unsound
from .running import ROOT, open_sessions

Sessions = sessionmaker[Session]

DUTY = Wanted(
    channels=("duty",),
    at_once=frozenset({"critical"}),
    digest=frozenset({"critical", "warning"}),
    cleared=True,
)
AT_ONCE = Pace(gather=timedelta(), digest=timedelta(hours=1), most_per_hour=20)


@pytest.fixture
def hook() -> Iterator[Hook]:
    """A web server that takes messages."""
    with hook_server() as hook:
        yield hook


class NewSender(Protocol):
    """Makes senders by the channel `duty`."""

    def __call__(self, **told: Any) -> Sender:
        """Make one, as in a process that has just started; `told` are settings of notify."""


@pytest.fixture
def new_sender(migrated_url: str, clock: Clock, hook: Hook) -> Iterator[NewSender]:
    """Makes senders that send to `hook`; closes their connections in the end."""
    with ExitStack() as made:

        def new(**told: Any) -> Sender:
            notify = Notify.model_validate({"channels": {"duty": hook.url}} | told)
            settings = Settings.model_validate({"database": {"url": migrated_url}})
            settings = settings.model_copy(update={"notify": notify})
            store = Store(settings)
            made.callback(store.close)
            return Sender(settings, channels_of(notify), store, clock)

        yield new


def found(
    severity: Severity = "critical", subject: str = "x", *, weight: int = 1, title: str = ""
) -> Finding:
    """A finding of a rule about nobody."""
    return Finding(
        rule="file_rejected",
        subject=subject,
        severity=severity,
        title=title or f"{subject} is odd",
        description="nothing to be seen here",
        details={},
        detected_at=None,
        weight=weight,
    )


def settle(sessions: Sessions, clock: Clock, *findings: Finding, wanted: Wanted = DUTY) -> None:
    """Let the alerts of `file_rejected` be these, in one commit."""
    with outbox.telling(sessionmaker(**sessions.kw), wanted).begin() as session:
        Settlement(session, None, clock())("file_rejected", findings)


def answered(sessions: Sessions, subject: str, status: str, answered_gravity: int | None) -> None:
    """A person answers an alert."""
    with sessions.begin() as session:
        alert = session.get_one(Alert, alert_id("file_rejected", None, subject))
        alert.status = status
        alert.answered_gravity = alert.gravity if answered_gravity is None else answered_gravity


def noted(sessions: Sessions) -> list[tuple[str, str, bool]]:
    """Kind, severity and urgency of all notices, in order."""
    with sessions() as session:
        rows = session.scalars(select(Notice).order_by(Notice.at, Notice.title, Notice.id))
        return [(row.kind, row.severity, row.is_urgent) for row in rows]


def states(sessions: Sessions) -> list[str]:
    """What became of all notices, in order."""
    with sessions() as session:
        return list(session.scalars(select(Notice.status).order_by(Notice.at, Notice.title)))


# In the commit of the alert -----------------------------------------------------------------


@pytest.mark.promise(31)
def test_an_alert_and_its_notice_are_there_together_or_not_at_all(
    ingest: Ingest, drop_file: DropFile, voting: Voting, sessions: Sessions, did: Did
) -> None:
    """Broken off before the commit there is neither, however often; afterwards there is one."""
    outbox.telling(ingest.sessions, DUTY)
    file = drop_file(voting.name(8), ["torn"] * 50)

    class Broken(Exception):
        """A power cut."""

    def cut(step: Step) -> None:
        if step == Step.QUARANTINED:
            raise Broken

    ingest.on_step = cut
    for _ in range(2):
        with pytest.raises(Broken):
            ingest.take(file)
        assert [] == noted(sessions)
    ingest.on_step = lambda _step: None
    for job in ingest.take(file):
        assert "quarantined" == job.status
    assert [("opened", "critical", True)] == noted(sessions)
    assert [] == unsound(sessions)
    did("2 attempts broken off inside of the commit of an alert, then one that was not: 1 notice")


def test_what_changes_of_an_alert_is_noted_once_for_each_change(
    sessions: Sessions, clock: Clock
) -> None:
    """New, graver, cleared, back; that it still holds is no news, nor that it is less grave.

    What is back is in a hurry where nobody was told before.
    """
    expected = []
    for finding, change in (
        ("warning", ("opened", "warning", False)),
        ("warning", None),
        ("critical", ("worse", "critical", True)),
        ("warning", None),
        ("", ("cleared", "warning", False)),
        ("", None),
        ("critical", ("worse", "critical", True)),
        ("", ("cleared", "critical", False)),
        ("critical", ("back", "critical", True)),
    ):
        clock.advance(1)
        settle(sessions, clock, *([found(finding)] if finding else []))  # type: ignore[arg-type]  # a severity
        expected += [change] if change else []
        assert expected == noted(sessions)


@pytest.mark.parametrize("status", ["resolved", "snoozed"])
def test_what_a_person_has_put_aside_is_told_again_only_when_more_is_found(
    sessions: Sessions, clock: Clock, status: str
) -> None:
    """Neither that it cleared itself, nor that it is back."""
    settle(sessions, clock, found(weight=5))
    answered(sessions, "x", status, None)
    clock.advance(1)
    settle(sessions, clock)
    settle(sessions, clock, found(weight=5))
    assert [("opened", "critical", True)] == noted(sessions)
    settle(sessions, clock, found(weight=6))
    assert ["opened", "again"] == [kind for kind, *_ in noted(sessions)]


def test_without_a_channel_nothing_is_written(sessions: Sessions, clock: Clock) -> None:
    """Not even asked for."""
    settle(sessions, clock, found(), wanted=wanted_of(Notify()))
    assert [] == noted(sessions)


def test_a_crowd_of_alerts_costs_its_commit_one_statement(sessions: Sessions, clock: Clock) -> None:
    """Whatever the number of alerts and channels; info is nobody's by default."""
    statements = []

    @event.listens_for(sessions.kw["bind"], "before_cursor_execute")
    def on_statement(_c: Any, _u: Any, statement: str, *_more: Any) -> None:
        statements.append(statement)

    wanted = wanted_of(Notify(channels={"duty": "http://localhost", "chat": "http://localhost"}))
    many = [found(subject=f"{number:03}") for number in range(200)]
    settle(sessions, clock, *many, found("info", "not told"), wanted=wanted)
    assert 1 == sum("INTO notice" in statement for statement in statements)
    assert 400 == len(noted(sessions))


# The sender ---------------------------------------------------------------------------------


def test_a_message_says_what_there_is_and_is_sent_once(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """Its id is its key; what comes of files is made harmless."""
    settle(sessions, clock, found(title="a\x1b[2J\nline"), found("warning", "y"))
    sender = new_sender()
    assert [1, 0] == [sender.turn(AT_ONCE), sender.turn(AT_ONCE)]
    [posted] = hook.posted
    told = posted.json
    assert told["id"] == posted.headers["Idempotency-Key"]
    assert "application/json" == posted.headers["Content-Type"]
    assert ("critical", 0, False) == (told["severity"], told["left_out"], told["is_test"])
    [change] = told["changes"]
    assert r"a\x1b[2J\nline" == change["title"]
    assert ("opened", "file_rejected", "feed") == tuple(
        change[name] for name in ("kind", "rule", "class")
    )
    assert str(alert_id("file_rejected", None, "x")) == change["alert_id"]
    assert r"a\x1b[2J\nline" in told["text"]
    # The warning waits for the digest.
    assert ["sent", "waiting"] == sorted(states(sessions))
    clock.advance(3601)
    assert 1 == sender.turn(AT_ONCE)
    assert [r"a\x1b[2J\nline", "y is odd"] == hook.titles()


def test_a_message_that_is_refused_is_tried_again_under_its_id_also_by_the_next_process(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """The pauses are in the table; what comes meanwhile waits, and then is one message."""
    hook.answers = [500, 503, 200]
    settle(sessions, clock, found())
    assert 0 == new_sender().turn(AT_ONCE)
    settle(sessions, clock, found(), found(subject="y"), found(subject="z"))
    for pause in (0, 15, 30):
        clock.advance(pause)
        new_sender().turn(AT_ONCE)
    first, *others = hook.ids()
    assert [first, first] == others
    assert 1 == new_sender().turn(AT_ONCE)
    assert {"x is odd", "y is odd", "z is odd"} == set(hook.titles())
    assert ["sent"] * 3 == states(sessions)


def test_the_pause_that_the_other_end_asks_for_is_kept(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """429 and Retry-After, up to an hour."""
    hook.answers, hook.headers = [429], {"Retry-After": "1800"}
    settle(sessions, clock, found())
    sender = new_sender()
    sender.turn(AT_ONCE)
    clock.advance(1799)
    sender.turn(AT_ONCE)
    assert 1 == len(hook.posted)
    clock.advance(1)
    sender.turn(AT_ONCE)
    assert 2 == len(hook.posted)


def test_who_is_killed_with_a_message_in_hand_leaves_it_to_the_next(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """When the lease is over, under the same id; not before, since it may only be slow."""
    settle(sessions, clock, found())
    with sessions.begin() as session:
        due = outbox.due(session, "duty", AT_ONCE, clock())
        assert due is not None
        assert outbox.claim(session, due, now=clock(), lease=timedelta(seconds=50))
    sender = new_sender()
    assert 0 == sender.turn(AT_ONCE)
    clock.advance(51)
    assert 1 == sender.turn(AT_ONCE)
    assert [str(due.message_id)] == hook.ids()


def test_two_senders_send_a_message_once(
    sessions: Sessions, migrated_url: str, clock: Clock
) -> None:
    """Both see it at the same moment; one of them takes it."""
    settle(sessions, clock, found())
    with sessions() as session:
        due = outbox.due(session, "duty", AT_ONCE, clock())
    assert due is not None
    both = threading.Barrier(2)
    taken = []

    def take() -> None:
        both.wait(60)
        with open_sessions(migrated_url) as own, own.begin() as session:
            taken.append(outbox.claim(session, due, now=clock(), lease=timedelta(seconds=50)))

    senders = [threading.Thread(target=take) for _ in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(60)
    assert [False, True] == sorted(taken)


def test_a_flood_is_one_message(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """The gravest are listed, the rest is counted."""
    wanted = Wanted(channels=("duty",), digest=frozenset({"info", "critical"}))
    crowd = [found("info", f"{number:04}") for number in range(2000)]
    settle(sessions, clock, *crowd, found(subject="grave"), wanted=wanted)
    clock.advance(3600)
    sender = new_sender()
    assert [1, 0] == [sender.turn(), sender.turn()]
    told = hook.posted[0].json
    assert ("grave is odd", message.MOST_LISTED) == (hook.titles()[0], len(hook.titles()))
    assert 2001 - message.MOST_LISTED == told["left_out"]
    assert {1, 2000} == {count["number"] for count in told["counts"]}


def test_beyond_the_rate_what_waits_becomes_one_message(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """Also through a restart, since the table knows what was sent."""
    pace = Pace(gather=timedelta(), digest=timedelta(hours=1), most_per_hour=2)
    alerts: list[Finding] = []
    for number in range(6):
        alerts.append(found(subject=f"{number}"))
        settle(sessions, clock, *alerts)
        new_sender().turn(pace)
        clock.advance(1)
    assert 2 == len(hook.posted)
    clock.advance(3600)
    new_sender().turn(pace)
    assert [1, 1, 4] == [len(each.json["changes"]) for each in hook.posted]


def test_what_cleared_itself_before_it_was_told_is_not_told(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """Files come in any order: most of what is missing comes a moment later."""
    settle(sessions, clock, found(subject="x"), found(subject="y"))
    clock.advance(5)
    settle(sessions, clock, found(subject="y"))
    clock.advance(3600)
    new_sender().turn(AT_ONCE)
    assert ["y is odd"] == hook.titles()
    assert ["sent", "settled", "settled"] == sorted(states(sessions))


def test_that_an_alert_cleared_itself_is_told_to_who_was_told_of_it(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """In the digest, and as good news."""
    settle(sessions, clock, found())
    sender = new_sender()
    sender.turn(AT_ONCE)
    settle(sessions, clock)
    assert 0 == sender.turn(AT_ONCE)
    clock.advance(3601)
    assert 1 == sender.turn(AT_ONCE)
    assert ["critical", "info"] == [each.json["severity"] for each in hook.posted]
    assert ["opened", "cleared"] == [each.json["changes"][0]["kind"] for each in hook.posted]
    settle(sessions, clock, found())
    assert [False] == [is_urgent for kind, _, is_urgent in noted(sessions) if kind == "back"]


def test_a_clock_that_is_set_back_holds_nothing_up(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """Neither what was just written, nor what waits for its next try."""
    hook.answers = [500, 200]
    settle(sessions, clock, found())
    clock.advance(-400 * 86_400)
    sender = new_sender()
    assert 0 == sender.turn()
    clock.advance(-400 * 86_400)
    assert 1 == sender.turn()


def test_what_is_given_up_is_said_and_can_be_tried_again(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """After so many hours; what has no channel, too, since another daemon may have it."""
    hook.answers = [410]
    settle(sessions, clock, found())
    # However long it waited before: only what is tried for so long is given up.
    for _ in range(2):
        clock.advance(73 * 3600)
        new_sender().turn(AT_ONCE)
        assert ["waiting"] == states(sessions)
        clock.advance(72 * 3600)
        new_sender().turn(AT_ONCE)
        assert ["failed"] == states(sessions)
        with sessions.begin() as session:
            assert 1 == outbox.try_again(session)
    hook.answers = [200]
    assert 1 == new_sender().turn(AT_ONCE)
    settle(
        sessions,
        clock,
        found(),
        found(subject="y"),
        wanted=Wanted(channels=("gone",), at_once=frozenset({"critical"})),
    )
    for hours, error in ((0, None), (73, "the settings do not name this channel")):
        clock.advance(hours * 3600)
        new_sender().turn(AT_ONCE)
        with sessions() as session:
            told = session.scalars(select(Notice.last_error).where(Notice.channel == "gone"))
            assert [error] == list(told)


def test_what_waits_is_told_with_when_it_should_have_gone(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """What is told at once after it was gathered, the rest with the digest; nothing, once sent."""
    sender = new_sender(gather_seconds=30, digest_minutes=60)
    assert [] == sender.waiting()
    first = clock()
    settle(sessions, clock, found("warning"))
    expected = Waiting("duty", 1, first, first + timedelta(hours=1))
    assert [expected] == sender.waiting()
    clock.advance(60)
    second = clock()
    settle(sessions, clock, found("warning"), found("critical", "y"))
    expected = Waiting("duty", 2, first, second + timedelta(seconds=30))
    assert [expected] == sender.waiting()
    clock.advance(3600)
    assert 1 == sender.turn()
    assert [] == sender.waiting()


def test_a_message_that_is_refused_again_and_again_is_in_nobodys_way_for_long(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """It is given up after half an hour, since the channel works; the next one goes."""
    hook.answers = [413] * 8 + [200]
    settle(sessions, clock, found())
    sender = new_sender()
    for _ in range(8):
        assert ["waiting"] == states(sessions)
        sender.turn(AT_ONCE)
        clock.advance(3600)
    assert ["failed"] == states(sessions)
    settle(sessions, clock, found(), found(subject="y"))
    assert 1 == sender.turn(AT_ONCE)
    assert "y is odd" == hook.titles()[-1]


def test_while_the_database_is_away_many_troubles_are_one_message(
    tmp_path: Path, clock: Clock, hook: Hook
) -> None:
    """The same one until it is taken, whatever comes meanwhile; and not too many in an hour."""
    settings = Settings.model_validate({"database": {"url": f"sqlite:///{tmp_path}/none.db"}})
    notify = Notify(channels={"duty": hook.url}, most_per_hour=2)
    settings = settings.model_copy(update={"notify": notify})
    troubles = Troubles(timedelta())
    sender = Sender(settings, channels_of(notify), Store(settings), clock, troubles)
    hook.answers = [500, 200]
    for count in (300, 1, 1):
        for number in range(count):
            troubles.hear("file_not_taken", {"path": f"{clock()} {number}"}, clock())
        with pytest.raises(StorageFault):
            sender.turn()
        clock.advance(60)
    first, again, more = [posted.json for posted in hook.posted]
    assert first["id"] == again["id"] != more["id"]
    assert (30, 270, 2) == (len(first["changes"]), first["left_out"], len(more["changes"]))
    troubles.hear("file_not_taken", {"path": "x"}, clock())
    for seconds, expected in ((0, 3), (3600, 4)):
        clock.advance(seconds)
        with pytest.raises(StorageFault):
            sender.turn()
        assert expected == len(hook.posted)


def test_old_notices_are_swept_and_what_waits_stays(
    sessions: Sessions, clock: Clock, hook: Hook, new_sender: NewSender
) -> None:
    """After keep.notices_days."""
    settle(sessions, clock, found(), found("warning", "y"))
    new_sender().turn(AT_ONCE)
    clock.advance(91 * 86_400)
    new_sender().turn(Pace(gather=timedelta(), digest=timedelta(days=365), most_per_hour=20))
    assert ["waiting"] == states(sessions)


def test_a_database_that_keeps_people_from_being_told_is_said_once_a_minute() -> None:
    """With its reason: the daemon may meet nothing of it, as of a schema that is not ours."""
    put_off = PutOff()
    with capture_logs() as logs:
        for second in range(0, 131, 5):
            put_off.note(StorageFault("not ours"), second)
        put_off.over()
        put_off.note(StorageFault("not ours"), 200)
    expected = [("notices_put_off", "not ours", seconds) for seconds in (60, 120)]
    assert expected == [(each["event"], each["error"], each["for_seconds"]) for each in logs]


# Channels -----------------------------------------------------------------------------------


def test_a_webhook_is_signed(hook: Hook, tmp_path: Path, clock: Clock) -> None:
    """Time and body, by the secret of a file."""
    (tmp_path / "secret").write_text("s3cret\n")
    [channel] = channels_of(
        Notify(channels={"duty": hook.url}, webhook_secret_file=tmp_path / "secret")
    )
    channel.send(message.of_test(clock()))
    [posted] = hook.posted
    at = posted.headers["X-Ingestd-Timestamp"]
    assert signature("s3cret", at, posted.body) == posted.headers["X-Ingestd-Signature"]


def test_a_redirect_is_not_followed(hook: Hook, clock: Clock) -> None:
    """Else whoever answers could have the message sent elsewhere."""
    with hook_server() as elsewhere:
        hook.answers, hook.headers = [307], {"Location": elsewhere.url}
        [channel] = channels_of(Notify(channels={"duty": hook.url}))
        with pytest.raises(Undelivered, match="redirects are not followed"):
            channel.send(message.of_test(clock()))
        assert (1, 0) == (len(hook.posted), len(elsewhere.posted))


def test_a_server_that_does_not_end_costs_a_limited_time(hook: Hook, clock: Clock) -> None:
    """Whatever the library would wait for."""
    go_on = threading.Event()
    hook.before = lambda _posted: go_on.wait(120)
    [channel] = channels_of(Notify(channels={"duty": hook.url}, timeout_seconds=100))
    with pytest.raises(Undelivered, match=r"within 0\.2 s"):
        send_in_time(channel, message.of_test(clock()), 0.2)
    with pytest.raises(Undelivered, match="stopped before"):
        send_in_time(channel, message.of_test(clock()), 100, lambda: True)
    go_on.set()


def test_what_goes_wrong_is_said_without_the_url(clock: Clock, hook: Hook) -> None:
    """A closed port, an unknown host, no TLS, a refusal: neither path nor password is shown."""
    secret = "SECRET-TOKEN"
    for url, words in (
        (f"http://127.0.0.1:1/{secret}", "refused"),
        (f"https://me:{secret}@127.0.0.1:{hook.port}/", "TLS"),
        (f"http://no-such-host.invalid/{secret}", "unknown host"),
        (f"json://me:{secret}@127.0.0.1:1/{secret}", ""),
        (f"http://mё:{secret}@127.0.0.1:1/", "refused"),
    ):
        [channel] = channels_of(Notify(channels={"duty": url}))
        assert secret not in repr(channel)
        with pytest.raises(Undelivered) as caught:
            channel.send(message.of_test(clock()))
        assert words in str(caught.value)
        assert secret not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_other_urls_go_through_apprise(hook: Hook, clock: Clock) -> None:
    """As plain text, whatever stands in it."""
    url = f"json://127.0.0.1:{hook.port}/x"
    [channel] = channels_of(Notify(channels={"chat": url}))
    assert "json" == channel.kind
    channel.send(message.of_test(clock()))
    [posted] = hook.posted
    assert "a test" in posted.json["title"]
    hook.answers = [500]
    with pytest.raises(Undelivered):
        channel.send(message.of_test(clock()))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tgram://123456789:abcdefg_hijklmnop/12315544/", ("split", False)),
        ("tgram://123456789:abcdefg_hijklmnop/12315544/?redirect=yes", ("split", True)),
        (
            "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js?overflow=truncate",
            ("truncate", False),
        ),
        ("twilio://AC00000000000000000000000000000000:a@15551234567", ("truncate", False)),
    ],
)
def test_what_is_too_long_for_a_chat_goes_in_parts(url: str, expected: tuple[str, bool]) -> None:
    """Unless the URL says otherwise; a short message would be dozens and has the beginning."""
    [channel] = channels_of(Notify(channels={"chat": url}))
    [service] = channel._notifier  # type: ignore[attr-defined]  # noqa: SLF001 - what apprise made of it
    overflow = getattr(service.overflow_mode, "value", service.overflow_mode)
    assert expected == (overflow, service.redirects)


def test_without_apprise_it_is_said_what_to_install() -> None:
    """Webhooks need nothing more."""
    code = (
        "import sys; sys.modules['apprise'] = None\n"
        "from ingestd.config import ConfigError, Notify\n"
        "from ingestd.telling.channels import channels_of\n"
        "assert channels_of(Notify(channels={'duty': 'https://localhost/x'}))\n"
        "try: channels_of(Notify(channels={'mail': 'mailtos://me:word@localhost'}))\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    expected = "notify.channels.mail: mailtos:// needs one package more: "
    assert f"{expected}pip install 'ingestd[notify]'\n" == done.stdout


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"duty": "hunter2-is-no-url"}, "duty: must be a URL"),
        ({"two words": "https://host/hunter2"}, "'two words': a channel's name"),
        ({"https://host/hunter2": "duty"}, "name number 1: a channel's name"),
        ({"duty": "https:///hunter2"}, "not a URL of a web server"),
        ({"duty": "nosuch://hunter2"}, "apprise knows no such URL of nosuch"),
    ],
)
def test_a_channel_that_cannot_be_used_is_refused_without_its_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: dict[str, str], words: str
) -> None:
    """In the configuration as in the file of channels."""
    monkeypatch.chdir(tmp_path)
    lines = [f'"{name}" = "{url}"' for name, url in channels.items()]
    (tmp_path / "channels").write_text("\n".join(lines))
    (tmp_path / "one.toml").write_text("\n".join(["[notify.channels]", *lines]))
    (tmp_path / "two.toml").write_text('[notify]\nchannels_file = "channels"\n')
    for config in ("one.toml", "two.toml"):
        with pytest.raises(ConfigError, match=words) as caught:
            channels_of(load_settings(tmp_path / config).notify)
        assert "hunter2" not in str(caught.value)


def test_a_file_of_channels_is_added_to_those_of_the_configuration(tmp_path: Path) -> None:
    """Each name once."""
    config, more = tmp_path / "ingestd.toml", tmp_path / "channels"
    config.write_text('[notify]\nchannels_file = "channels"\n[notify.channels]\na = "http://a"\n')
    more.write_text('b = "http://b"\n')
    assert {"a": "http://a", "b": "http://b"} == load_settings(config).notify.channels
    more.write_text('a = "http://b"\n')
    with pytest.raises(ConfigError, match="a is a channel of the configuration, too"):
        load_settings(config)
    more.write_text("b = 7\n")
    with pytest.raises(ConfigError, match="'b': must be a URL in quotes"):
        load_settings(config)
    more.write_text('"https://host/hunter2" = 7\n')
    with pytest.raises(ConfigError, match="name number 1: must be a URL in quotes") as caught:
        load_settings(config)
    assert "hunter2" not in str(caught.value)
    more.write_text("b = hunter2\n")
    with pytest.raises(ConfigError, match="a line must be like") as caught:
        load_settings(config)
    assert "hunter2" not in str(caught.value)


def test_channels_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not, is refused without a word of it."""
    monkeypatch.setenv("INGESTD_NOTIFY__CHANNELS", "duty=https://host/hunter2")
    with pytest.raises(ConfigError, match="INGESTD_NOTIFY__CHANNELS: must be a JSON obj") as caught:
        load_settings()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# Troubles -----------------------------------------------------------------------------------


def test_a_trouble_is_told_when_it_lasts_and_when_it_is_over(clock: Clock) -> None:
    """Once each; what is over before is not worth a word."""
    troubles = Troubles(timedelta(seconds=60))
    troubles.hear("storage_away", {"error": "gone"}, clock())
    troubles.hear("archive_full", {"place": "/a", "advice": "make room"}, clock())
    troubles.hear("file_ingested", {}, clock())
    assert [] == troubles.due(clock())
    clock.advance(30)
    troubles.hear("storage_back", {}, clock())
    troubles.hear("archive_full", {"place": "/a", "files": 2}, clock())
    clock.advance(30)
    [full] = troubles.due(clock())
    assert ("trouble", "critical", "the archive is on a full disk") == (
        *(full.kind, full.severity),
        full.title,
    )
    assert "files: 2" in full.description
    troubles.hear("archive_back", {"place": "/b"}, clock())
    assert [] == troubles.due(clock())
    troubles.hear("archive_back", {"place": "/a"}, clock())
    [over] = troubles.due(clock())
    assert "over: the archive is on a full disk" == over.title
    assert "it lasted 60 s" in over.description


def test_a_trouble_that_lasts_over_a_reload_is_told_once(clock: Clock) -> None:
    """The new daemon says it again; what it says only later is another one."""
    troubles = Troubles()
    for seconds, expected in ((0, 1), (5, 0), (3601, 1)):
        troubles.begin_anew(timedelta(), clock())
        clock.advance(seconds)
        troubles.hear("storage_away", {"error": "gone"}, clock())
        assert expected == len(troubles.due(clock()))
    troubles.begin_anew(timedelta(), clock())
    troubles.hear("storage_back", {}, clock())
    assert ["over"] == [each.kind for each in troubles.due(clock())]


def test_what_has_no_end_is_told_at_once_and_not_twice_an_hour(clock: Clock) -> None:
    """A part of the daemon that ended, say; another one that ends is another trouble."""
    troubles = Troubles(timedelta(seconds=60))
    for seconds, thread, expected in ((0, "x", 1), (10, "x", 0), (0, "y", 1), (3600, "x", 1)):
        clock.advance(seconds)
        troubles.hear("thread_died", {"thread": thread}, clock())
        assert expected == len(troubles.due(clock()))


def test_the_events_that_mean_trouble_are_events_of_the_program() -> None:
    """What nobody logs would never be told."""
    sources = "".join(path.read_text() for path in (ROOT / "ingestd").rglob("*.py"))
    made = {
        f"{folder}_{how}"
        for folder in ("inbox", "archive", "quarantine")
        for how in ("full", "not_writable", "failing", "back")
    }
    for event_ in {*KNOWN, *(known.over for known in KNOWN.values() if known.over)} - made:
        assert 2 <= sources.count(f'"{event_}"'), event_
