"""What an answer costs: tokens read from any provider's usage, prices by model, day and tier, and the lines of a bill.

A PriceBook looks in the prices of the settings file, then in the catalogue inside the installed genai-prices package,
which is as old as that version. An unknown price is an error, never $0.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field

from smallfirst.base.errors import ConfigError, PriceUnknown, did_you_mean
from smallfirst.base.records import Record

Count = Annotated[int, Field(ge=0)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Purpose = Literal["answer", "draft", "audit", "attempt"]
COST_HEADERS = ("x-litellm-response-cost",)
"""Headers in which a gateway states what an answer cost, in USD."""
_USD_PER_TICK = 1e-10
_USUAL_TIERS = ("", "auto", "default", "standard")


class TokenUsage(Record):
    """Billed tokens of one request."""

    prompt_tokens: Count = 0
    """All tokens read, cached ones and those written to a cache included, as OpenAI counts them."""
    cached_tokens: Count = 0
    """Of `prompt_tokens`, those read from the provider's cache."""
    cache_write_tokens: Count = 0
    """Of `prompt_tokens`, those written to the provider's cache."""
    cache_write_1h_tokens: Count = 0
    """Of `cache_write_tokens`, those kept for an hour instead of minutes, which costs more at Anthropic."""
    completion_tokens: Count = 0
    """All tokens written, reasoning included."""
    reasoning_tokens: Count = 0
    """Of `completion_tokens`, those of reasoning that the client does not see."""


def tokens_of(read: int, written: int = 0) -> TokenUsage:
    """Return tokens of which no kinds are told apart."""
    return TokenUsage(prompt_tokens=read, completion_tokens=written)


class Charge(Record):
    """One line of the bill of a request: the work of one model, or one attempt that brought no answer."""

    model: str
    """Name of the model that worked."""
    purpose: Purpose = "answer"
    """`draft`: a draft that was discarded, and the look at the request before it · `audit`: a comparison that the
    client did not wait for · `attempt`: work that brought no answer: cut off, failed, or not in the format."""
    usd: float | None
    """None: it may have to be paid, and nobody knows how much."""
    basis: Literal["billed", "tokens", "machine time"] = "machine time"
    """`billed`: the cost that the provider's answer states · `tokens`: tokens at a price · `machine time`: busy seconds
    at the price of a machine of our own."""
    tokens: TokenUsage = TokenUsage()
    busy_s: float = 0.0
    """Seconds that a machine of our own worked."""
    machine: str = ""
    """Which machine that was, by its name under `prices.machines`; empty: the one under `prices.machine`."""
    tier: str = ""
    """The provider's tier of service: `batch`, `flex`, `priority`; empty: the usual one."""
    source: str = ""
    """Where the price was read: a settings file, a version of the catalogue, a field of the provider's answer."""
    rates: dict[str, float] = {}
    """That price in USD: per million tokens by kind (`input`, `cached`, `cache_write`, `output`,
    `reasoning`), per `request`, or per machine `hour` with its `utilisation`."""
    estimated: bool = False
    """True if tokens are estimated, since an answer was cut off."""

    @property
    def in_words(self) -> str:
        """The line as a sentence without its end."""
        cost, tokens = "unknown cost" if self.usd is None else format_usd(self.usd), self.tokens
        parts = {
            f"{self.busy_s:.3g} s of {self.machine or 'this machine'}": self.busy_s,
            f"{tokens.prompt_tokens:,} tokens read ({tokens.cached_tokens:,} cached)": tokens.prompt_tokens,
            f"{tokens.completion_tokens:,} written": tokens.completion_tokens,
            f"{self.tier} tier": self.tier,
            "estimated": self.estimated,
            "at USD " + ", ".join(f"{usd:g} {kind}" for kind, usd in self.rates.items()): self.rates,
            self.source: self.source,
        }
        return f"{cost} for {self.purpose} by {self.model}: {', '.join(part for part, said in parts.items() if said)}"


def total_usd(charges: Iterable[Charge]) -> float:
    """Return the sum of the costs that are known, in USD."""
    return math.fsum(charge.usd for charge in charges if charge.usd is not None)


def known_usd(charges: Iterable[Charge]) -> float | None:
    """Return the same sum; None if there are lines and no cost of any is known."""
    lines = tuple(charges)
    return None if lines and all(line.usd is None for line in lines) else total_usd(lines)


def with_purpose(charges: Iterable[Charge], purpose: Purpose) -> tuple[Charge, ...]:
    """Return the lines of an answer as ones of another purpose; those that have another already keep it."""
    return tuple(line.model_copy(update={"purpose": purpose}) if line.purpose == "answer" else line for line in charges)


def stated(model: str, usd: float | None, *, source: str = "stated by the model", **known: Any) -> Charge:
    """Return the line of a cost that is stated without saying how it came about."""
    return Charge(model=model, usd=usd, basis="billed", source=source, **known)


def charges_json(charges: Iterable[Charge]) -> str | None:
    """Return the lines as the ledger keeps them, or None without any."""
    lines = [line.model_dump_json(exclude_defaults=True) for line in charges]
    return f"[{','.join(lines)}]" if lines else None


def format_usd(amount: float, significant: int = 2) -> str:
    """Return an amount in USD: cents from a dollar up, so many significant digits below."""
    if amount < 0:
        return f"−{format_usd(-amount, significant)}"
    if amount >= 99.5:
        return f"${amount:,.0f}"
    if amount >= 0.995 or not amount:
        return f"${amount:.2f}"
    # 0.0028 and never 2.8e-03.
    digits = significant
    while round(amount, digits) < 10 ** (significant - 1 - digits) and digits < 9:
        digits += 1
    return f"${amount:.{digits}f}"


class BusyTime:
    """The part of a machine's time that one request pays for, from now on."""

    def __init__(self, share: float) -> None:
        self._share, self._started_s = share, time.perf_counter()

    @property
    def seconds(self) -> float:
        return (time.perf_counter() - self._started_s) * self._share


class MachinePrice(Record):
    """Price of a machine that runs models itself."""

    usd_per_hour: Usd = 0.10
    """Rent, or depreciation plus power. 0.10 is about what 2 shared cloud cores cost."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the hour in which it does useful work, in (0, 1]; idle time is paid as well."""
    name: str = ""
    """Its name under `prices.machines`; empty for `prices.machine`."""

    def cost_usd(self, busy_s: float) -> float:
        """Return the cost in USD of `busy_s` busy seconds, idle time included."""
        return busy_s * self.usd_per_hour / 3600 / self.utilisation

    def charge(self, model: str, busy_s: float, tokens: TokenUsage | None = None) -> Charge:
        """Return the line of a bill for `busy_s` busy seconds of a model."""
        return Charge(
            model=model,
            usd=self.cost_usd(busy_s),
            busy_s=busy_s,
            tokens=tokens or TokenUsage(),
            machine=self.name,
            source=f"prices.machines.{self.name}" if self.name else "prices.machine",
            rates={"hour": self.usd_per_hour, "utilisation": self.utilisation},
        )


class TokenPrice(Record):
    """List price of a hosted model, in USD."""

    input_usd_per_mtok: Usd
    """USD per million prompt tokens."""
    output_usd_per_mtok: Usd
    """USD per million completion tokens."""
    cached_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller has cached; left out: they cost what others do."""
    cache_write_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller writes to its cache; left out: they cost what others do."""
    cache_write_1h_usd_per_mtok: Usd | None = None
    """The same where they are kept for an hour instead of minutes."""
    reasoning_usd_per_mtok: Usd | None = None
    """USD per million reasoning tokens; left out: they cost what other completion tokens do."""
    usd_per_request: Usd = 0.0
    """USD per request, whatever its tokens."""
    tiers: dict[str, Usd] = {}
    """By tier of service (`batch`, `flex`, `priority`) the factor on all prices of tokens."""
    source: str = ""
    """Where the price was read, such as an address; left out: the file in which it stands."""

    def rates(self, tier: str = "") -> dict[str, float]:
        """Return USD per million tokens by kind, and per `request` if there is such a price. Raise KeyError."""
        factor, fresh, output = self.tiers[tier] if tier else 1.0, self.input_usd_per_mtok, self.output_usd_per_mtok
        write = _either(self.cache_write_usd_per_mtok, fresh)
        found = {
            "input": fresh,
            "cached": _either(self.cached_usd_per_mtok, fresh),
            "cache_write": write,
            "cache_write_1h": _either(self.cache_write_1h_usd_per_mtok, write),
            "output": output,
            "reasoning": _either(self.reasoning_usd_per_mtok, output),
        }
        return {kind: usd * factor for kind, usd in found.items()} | {"request": self.usd_per_request}


def tokens_by_kind(tokens: TokenUsage) -> dict[str, int]:
    """Return the tokens by the kinds of `TokenPrice.rates`, none of them twice."""
    read, written = tokens.prompt_tokens, tokens.completion_tokens
    kept = min(tokens.cache_write_1h_tokens, tokens.cache_write_tokens)
    return {
        "input": max(0, read - tokens.cached_tokens - tokens.cache_write_tokens),
        "cached": tokens.cached_tokens,
        "cache_write": tokens.cache_write_tokens - kept,
        "cache_write_1h": kept,
        "output": max(0, written - tokens.reasoning_tokens),
        "reasoning": tokens.reasoning_tokens,
    }


def _either(usd: float | None, other: float) -> float:
    return other if usd is None else usd


class PriceBook(Record):
    """The prices of a project."""

    tokens: dict[str, TokenPrice] = {}
    """Prices by model name, which take precedence over the catalogue."""
    machine: MachinePrice = MachinePrice()
    """Price of local work."""
    machines: dict[str, MachinePrice] = {}
    """Prices of further machines of one's own by name, which an endpoint's `machine` names."""
    usd_per_label: Usd | None = None
    """What a person's label costs, for "cannot be told yet"."""
    source: str = "task.yaml"
    """File in which the prices stand; set when it is read."""

    @pydantic.field_validator("machines")
    @classmethod
    def _named(cls, machines: dict[str, MachinePrice]) -> dict[str, MachinePrice]:
        return {name: price.model_copy(update={"name": name}) for name, price in machines.items()}

    def machine_named(self, name: str) -> MachinePrice:
        """Return the price of one of `machines`, or of `machine` for an empty name. Raise ConfigError."""
        if name and name not in self.machines:
            told = did_you_mean(name, self.machines)
            raise ConfigError(f'{self.source}: no machine "{name}" under prices.machines{told}')
        return self.machines[name] if name else self.machine

    def charge(
        self,
        model: str,
        tokens: TokenUsage,
        *,
        at: datetime.datetime | None = None,
        tier: str = "",
        api_url: str | None = None,
    ) -> Charge:
        """Return the line of a bill for one hosted call at a moment, now if left out. Raise PriceUnknown.

        `api_url` identifies the seller, `tier` is the provider's tier of service.
        """
        at = at or datetime.datetime.now(datetime.UTC)
        price = self.tokens.get(model)
        if price is None:
            try:
                price = list_price(model, api_url=api_url, at=at, tier=tier, prompt_tokens=tokens.prompt_tokens)
            except NotInCatalogue as error:
                raise self._unknown(model, f"it is not under `prices`, and {error}") from None
        elif tier and tier not in price.tiers:
            raise self._unknown(model, f"under `prices` it has no tier {tier}", more=f"tiers: {{{tier}: …}}")
        rates, counts = price.rates(tier), {**tokens_by_kind(tokens), "request": 1_000_000}
        used = {kind: usd for kind, usd in rates.items() if counts[kind] and (usd or kind != "request")}
        return Charge(
            model=model,
            usd=math.fsum(usd * counts[kind] for kind, usd in used.items()) / 1_000_000,
            basis="tokens",
            tokens=tokens,
            tier=tier,
            source=price.source or self.source,
            rates=used,
        )

    def _unknown(self, model: str, why: str, *, more: str = "") -> PriceUnknown:
        name = json.dumps(model, ensure_ascii=False)
        lines = ["prices:", "  tokens:", f"    {name}:", "      input_usd_per_mtok: …", "      output_usd_per_mtok: …"]
        lines += [f"      {more}"] * bool(more)
        where = f"add its price to {self.source}, in USD per million tokens:"
        return PriceUnknown(f"no price for {name}: {why}", hint="\n  ".join([where, *lines]))


_KEYS = {
    "input_mtok": "input_usd_per_mtok",
    "output_mtok": "output_usd_per_mtok",
    "cache_read_mtok": "cached_usd_per_mtok",
    "cache_write_mtok": "cache_write_usd_per_mtok",
    "cache_write_1h_mtok": "cache_write_1h_usd_per_mtok",
    "output_reasoning_mtok": "reasoning_usd_per_mtok",
}


class NotInCatalogue(Exception):
    """The catalogue has no such price; the message says why in a clause."""


def list_price(
    model: str, *, api_url: str | None, at: datetime.datetime, tier: str = "", prompt_tokens: int = 0
) -> TokenPrice:
    """Return the price of a prompt of so many tokens in a tier at a moment. Raise NotInCatalogue.

    The address names the seller for certain; without a known one the model's maker is taken as the seller.
    """
    try:
        import genai_prices
    except ImportError:
        raise NotInCatalogue("the price catalogue genai-prices is not installed") from None
    catalogue = f"genai-prices {genai_prices.__version__}"
    entry = _entry(model, api_url)
    if entry is None:
        raise NotInCatalogue(f"{catalogue} does not know it either")
    provider, found = entry
    # A provider calls a tier by one of these; a name that no entry has changes nothing.
    context = dict.fromkeys(("processing", "service_tier", "speed"), tier) if tier else {}
    if tier and not any(_applies(variant, context, at) for variant in found.price_variants or ()):
        raise NotInCatalogue(f"{catalogue} has no price of {provider.id}/{found.id} in the tier {tier}")
    prices = found.get_prices(at, context)
    rates = {ours: _rate(getattr(prices, theirs), prompt_tokens) for theirs, ours in _KEYS.items()}
    if rates["input_usd_per_mtok"] is None and rates["output_usd_per_mtok"] is None:
        raise NotInCatalogue(f"{catalogue} has no price of its tokens")
    required = {name: rates[name] or 0.0 for name in ("input_usd_per_mtok", "output_usd_per_mtok")}
    return TokenPrice(
        **{**rates, **required},
        usd_per_request=(_rate(prices.requests_kcount, prompt_tokens) or 0.0) / 1000,
        tiers={tier: 1.0} if tier else {},
        source=f"{catalogue}: {provider.id}/{found.id}",
    )


@functools.lru_cache(maxsize=1024)
def _entry(model: str, api_url: str | None) -> tuple[Any, Any] | None:
    """Return the seller and its model; to find none takes a millisecond, too long for each line of a log."""
    from genai_prices.data_snapshot import get_snapshot

    for address in dict.fromkeys((api_url, None)):
        with suppress(LookupError):
            return get_snapshot().find_provider_model(model, None, None, address)
    return None


def _applies(variant: Any, context: dict[str, str], at: datetime.datetime) -> bool:
    active = variant.constraint is None or variant.constraint.active(at)
    return active and all(context.get(key) == value for key, value in variant.when.items())


def _rate(price: Any, prompt_tokens: int) -> float | None:
    """Return a price in USD; of one that depends on the prompt's length, the one for all tokens of this request."""
    tiers = getattr(price, "tiers", None)
    if tiers is not None:
        price = next((tier.price for tier in reversed(tiers) if prompt_tokens > tier.start), price.base)
    return None if price is None else float(price)


MAX_STATED_USD = 1000
"""Most that one answer is believed to cost."""
_MAX_TOKENS = 10**8
"""Most that one answer is believed to have read or written."""


class Reported(NamedTuple):
    """What a response says of its bill."""

    tokens: TokenUsage | None = None
    """None where the response does not say."""
    tier: str = ""
    """Tier of service in which it was answered; empty: the usual one."""
    usd: float | None = None
    """Its cost, where the response states it."""
    source: str = ""
    """The field or header that states it."""

    def then(self, later: Reported) -> Reported:
        """Return this with what a later part of the same response says."""
        kept = later if later.usd is not None else self
        return Reported(later.tokens or self.tokens, later.tier or self.tier, kept.usd, kept.source)

    @property
    def credible(self) -> Reported:
        """Return this without tokens or a cost that no one answer has: a mistake of the provider's, or a lie."""
        tokens = self.tokens
        if tokens is not None and max(tokens.prompt_tokens, tokens.completion_tokens) > _MAX_TOKENS:
            tokens = None
        return self._replace(tokens=tokens, usd=self.usd if (self.usd or 0.0) <= MAX_STATED_USD else None)


def read_usage(response: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Reported:
    """Return what a response bills, in the shape of any provider; `headers` have lower-case names.

    OpenAI, DeepSeek, Mistral and xAI count cached tokens in the prompt, Anthropic and Bedrock beside it; xAI and Gemini
    count reasoning beside the answer. Costs are stated by OpenRouter, Perplexity, xAI, DeepInfra, LLM Gateway, LiteLLM
    and smallfirst.
    """
    usage = _object(response, "usage") or _object(response, "usageMetadata")
    tiers = ("fast" if usage.get("speed") == "fast" else None, usage.get("service_tier"), response.get("service_tier"))
    tier = next((tier.lower() for tier in tiers if isinstance(tier, str)), "")
    usd, source = _stated_cost(response, usage, headers or {})
    return Reported(_tokens(usage), "" if tier in _USUAL_TIERS else tier, usd, source)


def _tokens(usage: Mapping[str, Any]) -> TokenUsage | None:
    read = _object(usage, "prompt_tokens_details") or _object(usage, "input_tokens_details")
    wrote = _object(usage, "completion_tokens_details") or _object(usage, "output_tokens_details")
    prompt = _first(usage, "prompt_tokens", "promptTokenCount")
    completion = _first(usage, "completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokens")
    reasoning = _first({**usage, **wrote}, "reasoning_tokens", "thoughtsTokenCount") or 0
    names = ("cached_tokens", "cache_read_input_tokens", "cacheReadInputTokens", "prompt_cache_hit_tokens")
    cached = _first({**usage, **read}, *names, "cachedContentTokenCount", "num_cached_tokens") or 0
    names = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens", "cacheWriteInputTokens")
    written = _first({**usage, **read}, *names) or 0
    if prompt is None and (prompt := _first(usage, "input_tokens", "inputTokens")) is not None and not read:
        prompt += cached + written
    if prompt is None and completion is None:
        return None
    hour = _first(_object(usage, "cache_creation"), "ephemeral_1h_input_tokens") or 0
    total = _first(usage, "total_tokens", "totalTokenCount")
    if reasoning and total == (prompt or 0) + (completion or 0) + reasoning:
        completion = (completion or 0) + reasoning  # counted beside the answer
    prompt, completion = prompt or 0, completion or 0
    cached = min(cached, prompt)
    return TokenUsage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=(written := min(written, prompt - cached)),
        cache_write_1h_tokens=min(hour, written),
        completion_tokens=completion,
        reasoning_tokens=min(reasoning, completion),
    )


def _stated_cost(
    response: Mapping[str, Any], usage: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[float | None, str]:
    """Return what the answer cost in USD, and which field or header says so."""
    cost = usage.get("cost")
    own_keys = _object(usage, "cost_details").get("upstream_inference_cost") if usage.get("is_byok") is True else None
    found = {
        "smallfirst.cost_usd": _object(response, "smallfirst").get("cost_usd"),
        "usage.cost.total_cost": cost.get("total_cost") if isinstance(cost, Mapping) else None,
        # With keys of one's own OpenRouter bills its fee, and the provider the rest.
        "usage.cost": None if isinstance(cost, Mapping) else _sum(cost, own_keys),
        "usage.cost_in_usd_ticks": _sum(usage.get("cost_in_usd_ticks"), scale=_USD_PER_TICK),
        "usage.cost_usd_total": usage.get("cost_usd_total"),
        "usage.estimated_cost": usage.get("estimated_cost"),
        # A gateway without a price of the model writes 0 here, which is no cost.
        **{name: _usd(headers.get(name)) or None for name in COST_HEADERS},
    }
    return next(((usd, name) for name, value in found.items() if (usd := _usd(value)) is not None), (None, ""))


def _sum(*values: Any, scale: float = 1.0) -> float | None:
    known = [usd for value in values if (usd := _usd(value)) is not None]
    return math.fsum(known) * scale if known else None


def _usd(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if math.isfinite(amount) and amount >= 0 else None


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _first(values: Mapping[str, Any], *names: str) -> int | None:
    """Return the first whole number under the names; text is none, since a response is JSON."""
    return next((n for name in names if (n := whole(values.get(name), of_text=False)) is not None), None)


def whole(value: Any, *, of_text: bool = True) -> int | None:
    """Return a whole number that is not negative, also one that a table holds as text or float; else None."""
    if isinstance(value, bool) or value is None or value == "" or (isinstance(value, str) and not of_text):
        return None
    try:
        number = float(value)
        return int(number) if number >= 0 and (of_text or number.is_integer()) else None
    except (TypeError, ValueError, OverflowError):
        return None
