"""The fields of Databricks' serving endpoints as records; secrets accept any value, and config_rules checks them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from smallfirst import ServeSettings
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record


def _without_effect(why: str) -> Any:
    """Return a field that is accepted and changes nothing, for a reason that `notes` gives."""
    return Field(default=None, json_schema_extra={"why": why})


def notes(record: Record) -> Iterator[str]:
    """Yield a sentence for each field of a record that is given and has no effect."""
    for name, field in type(record).model_fields.items():
        if isinstance(field.json_schema_extra, dict) and getattr(record, name):
            yield f"{name} has no effect: {field.json_schema_extra['why']}"


class OpenAiConfig(Record):
    """Address and key of an OpenAI-style API."""

    openai_api_key: Any = None
    """`{{secrets/scope/key}}`."""
    openai_api_base: str = "https://api.openai.com/v1"
    """Address up to and including `/v1`."""
    openai_api_type: str = "openai"
    """Only `openai` is supported."""
    openai_organization: str | None = None
    """Not sent."""
    openai_api_key_plaintext: Any = None
    """Refused: it would be kept on disk."""
    # Azure's fields, refused by config_rules:
    openai_api_version: str | None = None
    openai_deployment_name: str | None = None
    microsoft_entra_client_id: Any = None
    microsoft_entra_client_secret: Any = None
    microsoft_entra_client_secret_plaintext: Any = None
    microsoft_entra_tenant_id: Any = None


class DatabricksConfig(Record):
    """Address and key of another workspace's serving endpoint."""

    databricks_workspace_url: str
    """For example https://adb-123.azuredatabricks.net."""
    databricks_api_token: Any = None
    """`{{secrets/scope/key}}`."""
    databricks_api_token_plaintext: Any = None
    """Refused: it would be kept on disk."""


class BearerAuth(Record):
    """A key sent as `Authorization: Bearer`."""

    token: Any = None
    """`{{secrets/scope/key}}`."""
    token_plaintext: Any = None
    """Refused: it would be kept on disk."""


class CustomConfig(Record):
    """Address and key of any other OpenAI-style API."""

    custom_provider_url: str
    """Address up to and including `/v1`, or with `/chat/completions` after it."""
    bearer_token_auth: BearerAuth | None = None
    api_key_auth: Any = None
    """Refused: keys are sent as `Authorization: Bearer` only."""


class ExternalModel(Record):
    """A model behind another server."""

    name: str
    """Its name there; its price is looked up by this name."""
    provider: str
    """`openai`, `databricks-model-serving` or `custom`."""
    task: str = "llm/v1/chat"
    """Only `llm/v1/chat`."""
    openai_config: OpenAiConfig | None = None
    databricks_model_serving_config: DatabricksConfig | None = None
    custom_provider_config: CustomConfig | None = None
    # Of providers that config_rules refuses:
    ai21labs_config: Any = None
    amazon_bedrock_config: Any = None
    anthropic_config: Any = None
    cohere_config: Any = None
    google_cloud_vertex_ai_config: Any = None
    palm_config: Any = None


class ServedEntity(Record):
    """A registered model or an external one."""

    name: str = ""
    """Its name at the endpoint; derived from the model if empty."""
    entity_name: str = ""
    """Three-level name of a registered model; `model_name` is the older field."""
    entity_version: str = ""
    """A number, or `@` and an alias that is followed; `model_version` is the older field."""
    external_model: ExternalModel | None = None
    """The external model, in place of a registered one."""
    workload_size: Any = _without_effect("the model runs in the endpoint's own process, as large as this machine is")
    workload_type: Any = _without_effect("the model runs on the hardware of this machine")
    scale_to_zero_enabled: Any = _without_effect("the process stays until `smallfirst endpoints stop`")
    environment_vars: Any = _without_effect("models here read no environment; the values are not kept")
    instance_profile_arn: Any = _without_effect("nothing here runs under a cloud role")
    min_provisioned_throughput: Any = _without_effect("nothing is provisioned")
    max_provisioned_throughput: Any = _without_effect("nothing is provisioned")
    min_provisioned_concurrency: Any = _without_effect("nothing is provisioned")
    max_provisioned_concurrency: Any = _without_effect("smallfirst.server.max_in_flight limits concurrent requests")
    provisioned_model_units: Any = _without_effect("nothing is provisioned")
    burst_scaling_enabled: Any = _without_effect("there is one process")

    @field_validator("entity_version", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value


class TrafficRoute(Record):
    """An entity's share of the traffic."""

    served_model_name: str = ""
    served_entity_name: str = ""
    traffic_percentage: int = Field(ge=0, le=100)
    """Share of the requests in percent."""

    @property
    def entity(self) -> str:
        return self.served_entity_name or self.served_model_name


class TrafficConfig(Record):
    """Shares of the entities in the traffic."""

    routes: tuple[TrafficRoute, ...]
    """Their percentages sum to 100."""


class AutoCaptureConfig(Record):
    """Recording of questions and answers, into the ledger."""

    enabled: bool = True
    # Accepted without effect: there is no table of a catalogue.
    catalog_name: str | None = None
    schema_name: str | None = None
    table_name_prefix: str | None = None


class EndpointCoreConfig(Record):
    """Served entities and their shares of the traffic."""

    served_entities: tuple[ServedEntity, ...] = ()
    """At least one."""
    traffic_config: TrafficConfig | None = None
    """Optional with a single entity, and in a cascade."""
    auto_capture_config: AutoCaptureConfig | None = None


class SmallfirstSettings(Record):
    """Settings that Databricks does not have, under `smallfirst` or `routing`."""

    strategy: Literal["split", "cascade"] = "split"
    """`cascade`: registered models answer what their certificate allows, the fallback the rest."""
    fallback: str = ""
    """External entity that a cascade asks last; optional if there is only one."""
    threshold: Any = None
    """Refused: the certificate holds it."""
    sticky_by: tuple[str, ...] = ("user",)
    """Tags of a request whose equal values go to the same entity."""
    prices: PriceBook = PriceBook()
    server: ServeSettings = ServeSettings()
    """Address, keys and limits; without `port` a free one is chosen once and kept."""
    follow_every_s: float = Field(default=5.0, gt=0)


class EndpointBody(Record):
    """The request that creates an endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    config: EndpointCoreConfig
    smallfirst: SmallfirstSettings = SmallfirstSettings()
    tags: Any = None
    """Kept and shown."""
    description: Any = None
    """Kept and shown."""
    route_optimized: Any = _without_effect("there is one route, and it is direct")
    rate_limits: Any = _without_effect(
        "kept and shown; smallfirst.server limits concurrent and queued requests instead"
    )
    ai_gateway: Any = _without_effect("kept and shown")
    budget_policy_id: Any = _without_effect("kept and shown")
    email_notifications: Any = _without_effect("no mail is sent")
    telemetry_config: Any = _without_effect("kept and shown")
