"""A month's statement: its figures are the ledger's sums; whatever was changed in its folder is found and named."""

import base64
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.base.files import sha256
from smallfirst.deployment.billing import statement
from smallfirst.deployment.billing.saved import Amount, MachineCost, savings, total
from smallfirst.deployment.billing.statement import (
    KEY,
    Statement,
    canonical,
    make,
    month_of,
    page_of,
    public_text,
    signing_key,
    verify,
)
from smallfirst.deployment.dashboard.watch import watch
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, ExpenseRow, LedgerRow, StateRow
from smallfirst.models.pricing import Charge

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
LATER = datetime(2026, 12, 2, tzinfo=UTC)
KEYS = Ed25519PrivateKey.from_private_bytes(bytes(32))


def bill(*charges: Charge) -> str:
    return json.dumps(
        [charge.model_dump(mode="json", exclude_defaults=True) | {"usd": charge.usd} for charge in charges]
    )


def fill(ledger: Ledger) -> None:
    """20 answers that stayed small and one of the large model with a draft, an audit of each small one, a training."""
    small = LedgerRow(id="s", at=NOON, served_name="t", status=200, latency_ms=1.0, task="t", stage="small")
    small = small.model_copy(update={"certified": True, "audited": True, "guarantee": "at most 5 % wrong"})
    small = small.model_copy(update={"cost_usd": 0.01, "charges": bill(Charge(model="t/3", usd=0.01, busy_s=2.0))})
    ledger.append(*(small.model_copy(update={"id": f"s{i}", "at": NOON + timedelta(days=i % 3)}) for i in range(20)))
    draft, tokens = Charge(model="t/3", usd=0.01, purpose="draft"), Charge(model="big", usd=0.2, basis="tokens")
    charges = bill(draft, tokens.model_copy(update={"source": "prices.yaml"}))
    large = {"id": "l", "stage": "large", "certified": False, "guarantee": None, "cost_usd": 0.21, "charges": charges}
    ledger.append(small.model_copy(update={**large, "audited": False}))
    ledger.append(
        *(
            AuditRow(
                id=f"s{i}",
                at=NOON,
                task="t",
                certificate="c1",
                propensity=1.0,
                wrong=i == 3,
                judged_by="large" if i < 17 else "nobody",
                cost_usd=0.3,
            )
            for i in range(20)
        ),
        ExpenseRow(id="run", at=NOON, task="t", kind="training", cost_usd=1.0),
        StateRow(at=NOON, task="t", before="live", after="drift", why="confidence fell", certificate="c1"),
    )


def made(ledger: Ledger, folder: Path) -> Statement:
    machine = MachineCost(usd_per_hour=0.1, up_s=36_000, busy_s=3600, stated_utilisation=0.3, charged_usd=0.2)
    return make(ledger, "2026-11", folder, key=KEYS, now=LATER, machines=[machine])


def test_it_says_what_was_paid_proven_and_saved(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    found = made(ledger, tmp_path / "november")
    others = make(ledger, "2026-11", tmp_path / "others", key=KEYS, now=LATER, tasks=["other"])
    assert (others.figures.n, others.saving.saved_usd) == (0, None)
    assert {kind: (n, round(usd, 9)) for kind, (n, usd) in found.bill.items()} == {
        "answers of small models": (20, 0.2),
        "answers of the large model": (1, 0.2),
        "discarded drafts": (1, 0.01),
        "audits": (20, 6.0),
        "training": (1, 1.0),
    }
    assert found.total_usd == pytest.approx(7.41 + 1.0 - 0.2)
    assert found.saving.saved_usd.usd == pytest.approx(20 * 0.3 - 0.2 - 0.01 - 6.0)
    assert found.net_usd.usd == pytest.approx(20 * 0.3 - 0.2 - 0.01 - 6.0 - 1.0 - 0.8)
    (proof,) = found.figures.proofs
    assert (proof.wrong.n, proof.n_wrong, proof.wrong.value, proof.judged_by) == (17, 1, 1 / 17, {"large": 17})
    assert [(one.task, one.n, one.n_missing, one.warns) for one in found.figures.audits] == [("t", 20, 3, True)]
    assert found.guarantees[found.figures.promises[0].guarantee] == "at most 5 % wrong"
    assert [change.after for change in found.changes] == ["drift"]
    assert {(one.model, one.price_source): one.n for one in found.figures.prices} == {
        ("t/3", ""): 20,
        ("t/3 + big", "prices.yaml"): 1,
    }
    assert not found.so_far
    assert found.verdict.startswith("Keep the API: with the small model this time cost more, by $1.01 ")
    page = page_of(found, "KEY").decode()
    assert found.verdict in page
    assert '<p class="fail">t: 3 of 20 drawn audits have no verdict (15%): ' in page
    assert "<h1>Statement of November 2026: cost $2.01 more than the large model alone</h1>" in page
    assert "from live to drift: confidence fell" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_month_under_way_is_marked_and_one_to_come_refused(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    found = make(ledger, "2026-11", tmp_path, key=KEYS, now=NOON + timedelta(days=1, hours=1))
    assert found.so_far
    assert found.figures.n == 36  # the days to come are not in it
    with pytest.raises(ConfigError, match="has not begun"):
        make(ledger, "2026-12", tmp_path, key=KEYS, now=NOON)
    for wrong in ("2026-13", "november", "2026-1"):
        with pytest.raises(ConfigError, match="is no month"):
            month_of(wrong)
    assert month_of("2026-12")[1] == datetime(2027, 1, 1, tzinfo=UTC)


def test_rows_that_have_expired_are_missed(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    ledger.expire_rows(NOON + timedelta(hours=1))
    for now in (LATER, NOON + timedelta(days=5)):
        with pytest.raises(ConfigError, match=r"of the 42 rows of 2026-11 .* are left"):
            make(ledger, "2026-11", tmp_path, key=KEYS, now=now)
    assert list(tmp_path.glob("*rows.csv*")) == []


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    assert public_text(signing_key(tmp_path)) == public_text(key)
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600
    (tmp_path / KEY).write_text("garbage")
    with pytest.raises(ConfigError, match="no signing key"):
        signing_key(tmp_path)


MONEY = st.floats(0, 100, allow_nan=False).map(lambda usd: round(usd, 6))
MOMENTS = st.integers(0, 3 * 86_400 - 1).map(lambda s: NOON + timedelta(seconds=s, days=1))  # to November's end


@st.composite
def rows(draw: st.DrawFn) -> list[LedgerRow | AuditRow | ExpenseRow]:
    found: list[LedgerRow | AuditRow | ExpenseRow] = []
    for i in range(draw(st.integers(0, 14))):
        stage, task = draw(st.sampled_from(["small", "words", "large", "person", "=cmd"])), draw(st.sampled_from("ab"))
        drafts = [Charge(model="d", usd=draw(MONEY), purpose="draft")] if draw(st.booleans()) else []
        usd = draw(st.none() | MONEY)
        charges = [*drafts, Charge(model='m,"x"\n', usd=usd, basis="tokens", source="+list", busy_s=draw(MONEY))]
        row = LedgerRow(
            id=f"r{i}",
            at=draw(MOMENTS),
            served_name="t",
            status=draw(st.sampled_from([200, 200, 200, 499, 422, 500])),
            latency_ms=1.0,
            task=draw(st.none() | st.just(task)),
            stage=stage,
            certified=stage in ("small", "words"),
            cost_usd=draw(st.just(sum(charge.usd or 0 for charge in charges)) | st.none()),
            charges=draw(st.just(bill(*charges)) | st.none()),
            prompt_tokens=draw(st.none() | st.integers(0, 10**6)),
            audited=draw(st.booleans()),
        )
        found.append(row)
        if row.audited and row.task:
            columns = {"propensity": draw(st.floats(0.01, 1)), "cost_usd": draw(MONEY), "wrong": draw(st.booleans())}
            judge = draw(st.sampled_from(["large", "person"]))
            audit = AuditRow(id=row.id, at=draw(MOMENTS), task=task, certificate="c", judged_by=judge, **columns)
            found.append(audit.model_copy(update={"charges": bill(Charge(model="big", usd=audit.cost_usd))}))
    for i in range(draw(st.integers(0, 2))):
        found.append(ExpenseRow(id=f"e{i}", at=draw(MOMENTS), task="a", kind="training", cost_usd=draw(MONEY)))
    return found


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(rows())
def test_the_figures_of_any_ledger_are_its_sums_and_its_savings(
    tmp_path_factory: pytest.TempPathFactory, entries: list[LedgerRow | AuditRow | ExpenseRow]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    ledger = Ledger(folder / "ledger.db")
    ledger.append(*entries)
    evaluated = {"a": Amount(usd=1.5, low_usd=1.0, high_usd=2.0, n=7)}
    made = make(ledger, "2026-11", folder, key=KEYS, now=LATER, evaluated=evaluated)
    assert verify(folder).statement == made
    since, until = month_of("2026-11")
    names = ("period", "kind", "task", "stage", "outcome", "n", "n_certified", "n_cost_unknown", "prompt_tokens")
    amounts = ("cost_usd", "draft_usd", "busy_s")
    sums = ledger.sums(since, until, by=("kind", "task", "stage", "outcome"), every="day")
    told = [one.model_copy(update={"stage": one.stage.removeprefix("'")}) for one in made.figures.sums]
    for said, summed in zip(sorted(told, key=lambda one: [getattr(one, n) for n in names[:5]]), sums, strict=True):
        assert [getattr(said, name) for name in names] == [getattr(summed, name) for name in names]
        assert [getattr(said, n) for n in amounts] == pytest.approx([getattr(summed, n) for n in amounts], rel=1e-9)
    found = savings(ledger, since, until, evaluated=evaluated)
    for said_saving, saving in zip(made.figures.savings, found, strict=True):
        assert said_saving.model_dump() == _about(saving.model_dump())
    assert made.saving.model_dump() == _about(total(found).model_dump())
    page = watch(ledger, {}, {"range": "30d"}, now=until - timedelta(microseconds=1))  # the thirty days of November
    answers = [one for one in made.figures.sums if one.kind == "answer"]
    assert page["outcomes"] == Counter(one.outcome for one in answers for _ in range(one.n))
    assert sum(page["usd"].values()) == pytest.approx(made.total_usd, rel=1e-9)
    assert page["n_cost_unknown"] == made.n_cost_unknown
    assert page["n"]["small"] == made.saving.n_small
    ledger.close()


def _about(values: dict[str, object]) -> dict[str, object]:
    return {
        name: _about(value)
        if isinstance(value, dict)
        else pytest.approx(value, rel=1e-9, abs=1e-9)
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


def sign(signed: dict[str, Any], folder: Path) -> None:
    signed["signature"] = base64.b64encode(KEYS.sign(canonical(signed["statement"]))).decode()
    (folder / "statement.json").write_bytes(canonical(signed))


def test_a_statement_that_nobody_touched_verifies_by_its_folder_alone(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    found = made(ledger, tmp_path / "november")
    same = "statement.html was made anew from these figures: equal, byte for byte"
    assert verify(tmp_path / "november") == (found, public_text(KEYS), same)
    assert verify(tmp_path / "november", public_key=public_text(KEYS)).statement == found
    with pytest.raises(ConfigError, match="not by"):
        verify(tmp_path / "november", public_key=public_text(Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="no statement"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("rows.csv", "s7,2026-11-11T12:00:00+00:00,t,small", "s7,2026-11-11T12:00:00+00:00,t,large", "not the rows"),
        ("rows.csv", "kind,id", "id,kind", "not the rows"),
        ("statement.json", '"cost_usd":0.21', '"cost_usd":0.22', "signature"),
        ("statement.html", "$2.01 more than the large model", "$1.01 more than the large model", "html was changed"),
        ("statement.json", '"signature":', '"comment":"paid","signature":', "not as a statement is written"),
        ("statement.json", '"month"', '"made_by_us":true,"month"', "signature does not fit"),
        ("statement.json", '{"public_key"', '{"statement":{"month":"2026-10"},"public_key"', "not as a statement is"),
        ("statement.json", '"made_by":', '"made_by":"us","made_by":', "not as a statement is written"),
        ("statement.json", '"n":20', '"n":NaN', "Out of range float"),
        ("statement.json", '"n":20', '"n":2.0e1', "not as a statement is written"),
        ("statement.json", '","signature":"', '=","signature":"', "no statement"),
        ("statement.json", '"statement":', '"statement":' + 9999 * "[" + 9999 * "]" + ',"state":', "recursion"),
        ("statement.json", '"signature":"', '"signature":"AAAA', "statement"),
    ],
)
def test_what_was_changed_is_found_and_named(
    ledger: Ledger, tmp_path: Path, file: str, before: str, after: str, said: str
) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    content = (tmp_path / file).read_text()
    assert before in content
    (tmp_path / file).write_text(content.replace(before, after, 1))
    with pytest.raises(ConfigError, match=said):
        verify(tmp_path)


def change_sums(statement: dict[str, Any], folder: Path) -> None:
    statement["figures"]["sums"][0]["cost_usd"] += 1


def add_a_name(statement: dict[str, Any], folder: Path) -> None:
    statement["figures"]["sums"][0]["rebate_usd"] = 1.0


def change_page(statement: dict[str, Any], folder: Path) -> None:
    page = folder / "statement.html"
    page.write_text(page.read_text().replace("$2.01", "$1.01"))
    statement["page_sha256"] = sha256(page)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_sums, "sums do not follow from the rows"),
        (change_page, "is not the page of these figures"),
        (add_a_name, r"figures\.sums\.0\.rebate_usd: unknown"),
    ],
)
def test_what_does_not_follow_from_the_rows_is_found_although_it_is_signed(
    ledger: Ledger, tmp_path: Path, change: Callable[[dict[str, Any], Path], None], said: str
) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    change(signed["statement"], tmp_path)
    sign(signed, tmp_path)
    with pytest.raises(ConfigError, match=said):
        verify(tmp_path)


def test_a_page_of_another_version_is_held_against_its_signature_alone(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger)
    with monkeypatch.context() as other:
        other.setattr(statement, "MADE_BY", "smallfirst 0.0.1")
        other.setattr(statement, "page_of", lambda found, key: b"<h1>another look</h1>")
        made(ledger, tmp_path)
    assert verify(tmp_path).page == "statement.html is as it was signed, by smallfirst 0.0.1"
    page = tmp_path / "statement.html"
    page.write_bytes(b"<h1>paid</h1>")
    with pytest.raises(ConfigError, match="changed after it was signed"):
        verify(tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    signed["statement"]["figures"]["sums"][0]["n"] += 1
    sign(signed, tmp_path)
    with pytest.raises(ConfigError) as refused:
        verify(tmp_path)
    assert "check it with that version" in str(refused.value)


def test_what_is_missing_is_said(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    (tmp_path / "statement.html").unlink()
    assert verify(tmp_path).page == "statement.html is not there: no page was compared"
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(ConfigError, match=r"rows\.csv: these are not the rows.*No such file"):
        verify(tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    del signed["signature"]
    (tmp_path / "statement.json").write_bytes(canonical(signed))
    with pytest.raises(ConfigError, match="no statement: it is not as a statement is written"):
        verify(tmp_path)


def test_names_from_outside_are_escaped_and_an_unknown_saving_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    row = LedgerRow(id="a", at=NOON, served_name="t", status=200, latency_ms=1.0, task="<b>t", stage="small")
    ledger.append(row.model_copy(update={"cost_usd": 0.5}), row.model_copy(update={"id": "b"}))
    found = make(ledger, "2026-11", tmp_path, key=KEYS, now=LATER)
    page = page_of(found, "KEY").decode()
    assert "<b>t" not in page
    assert "$0.50 spent" in page
    assert "nothing tells what the large model costs here" in page
    assert "and 1 with work whose cost nobody knows" in page
    evaluated = {"<b>t": Amount(usd=1.0, low_usd=0.5, high_usd=1.5, n=9)}
    known = make(ledger, "2026-11", tmp_path, key=KEYS, now=LATER, evaluated=evaluated)
    assert "saved $1.50" in page_of(known, "KEY").decode()
    ledger.append(row.model_copy(update={"id": "c", "task": "=t"}))
    make(ledger, "2026-11", tmp_path, key=KEYS, now=LATER)
    assert "answer,c,2026-11-10T12:00:00+00:00,'=t,small" in (tmp_path / "rows.csv").read_text()  # runs in no sheet
    ledger.close()
