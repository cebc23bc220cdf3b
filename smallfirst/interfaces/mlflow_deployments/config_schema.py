"""The fields of Databricks' serving endpoints, as records: each is read, or accepted and named in a note.

An unknown field is refused with the nearest known one. Values that may be secrets are taken as they come and looked at
by the rules, so that no message about a wrong type can repeat one.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from smallfirst.pricing import PriceBook
from smallfirst.project.task_file import SignedOverride
from smallfirst.records import Record
from smallfirst.serving.settings import ServeSettings


class OpenAiConfig(Record):
    """Where an OpenAI-style API is."""

    openai_api_key: Any = None
    """`{{secrets/scope/key}}`."""
    openai_api_base: str = "https://api.openai.com/v1"
    """Address up to and including `/v1`."""
    openai_api_type: str = "openai"
    """Only `openai` is spoken here."""
    openai_organization: str | None = None
    """Not sent."""
    openai_api_version: str | None = None
    """Belongs to Azure."""
    openai_deployment_name: str | None = None
    """Belongs to Azure."""
    openai_api_key_plaintext: Any = None
    """Refused: it would be kept on disk."""
    microsoft_entra_client_id: Any = None
    """Belongs to Azure."""
    microsoft_entra_client_secret: Any = None
    """Belongs to Azure."""
    microsoft_entra_client_secret_plaintext: Any = None
    """Belongs to Azure."""
    microsoft_entra_tenant_id: Any = None
    """Belongs to Azure."""


class DatabricksConfig(Record):
    """Another workspace's serving endpoint."""

    databricks_workspace_url: str
    """Such as https://adb-123.azuredatabricks.net."""
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
    """Any other OpenAI-style API."""

    custom_provider_url: str
    """Address up to and including `/v1`, or with `/chat/completions` after it."""
    bearer_token_auth: BearerAuth | None = None
    """How its key is sent."""
    api_key_auth: Any = None
    """Refused: keys are sent as `Authorization: Bearer` only."""


class ExternalModel(Record):
    """A model that another server answers for."""

    name: str
    """Its name there; its price is looked up by this name."""
    provider: str
    """`openai`, `databricks-model-serving` or `custom`."""
    task: str = "llm/v1/chat"
    """Only `llm/v1/chat`."""
    openai_config: OpenAiConfig | None = None
    """For `openai`."""
    databricks_model_serving_config: DatabricksConfig | None = None
    """For `databricks-model-serving`."""
    custom_provider_config: CustomConfig | None = None
    """For `custom`."""
    ai21labs_config: Any = None
    """Of a provider that is refused."""
    amazon_bedrock_config: Any = None
    """Of a provider that is refused."""
    anthropic_config: Any = None
    """Of a provider that is refused."""
    cohere_config: Any = None
    """Of a provider that is refused."""
    google_cloud_vertex_ai_config: Any = None
    """Of a provider that is refused."""
    palm_config: Any = None
    """Of a provider that is refused."""


class ServedEntity(Record):
    """A registered model or an external one."""

    name: str = ""
    """Its name at the endpoint; made up from what it is if there is none."""
    entity_name: str = ""
    """Three-level name of a registered model; `model_name` is the older word."""
    entity_version: str = ""
    """A number, or `@` and an alias that is followed; `model_version` is the older word."""
    external_model: ExternalModel | None = None
    """Instead of a registered one."""
    workload_size: Any = None
    """Noted."""
    workload_type: Any = None
    """Noted."""
    scale_to_zero_enabled: Any = None
    """Noted."""
    environment_vars: Any = None
    """Noted; only the names are kept."""
    instance_profile_arn: Any = None
    """Noted."""
    min_provisioned_throughput: Any = None
    """Noted."""
    max_provisioned_throughput: Any = None
    """Noted."""
    min_provisioned_concurrency: Any = None
    """Noted."""
    max_provisioned_concurrency: Any = None
    """Noted."""
    provisioned_model_units: Any = None
    """Noted."""
    burst_scaling_enabled: Any = None
    """Noted."""

    @field_validator("entity_version", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value


class TrafficRoute(Record):
    """An entity's share."""

    served_model_name: str = ""
    """The entity's name."""
    served_entity_name: str = ""
    """The same by its newer word."""
    traffic_percentage: int = Field(ge=0, le=100)
    """Share of the requests in percent."""

    @property
    def entity(self) -> str:
        """The entity's name by whichever word."""
        return self.served_entity_name or self.served_model_name


class TrafficConfig(Record):
    """How requests are shared out."""

    routes: tuple[TrafficRoute, ...]
    """Their percentages sum to 100."""


class AutoCaptureConfig(Record):
    """Whether questions and answers are kept."""

    enabled: bool = True
    """Kept in the ledger's own columns."""
    catalog_name: str | None = None
    """Noted."""
    schema_name: str | None = None
    """Noted."""
    table_name_prefix: str | None = None
    """Noted."""


class EndpointCoreConfig(Record):
    """What is served, and how requests are shared out."""

    served_entities: tuple[ServedEntity, ...] = ()
    """At least one."""
    traffic_config: TrafficConfig | None = None
    """May be left out with one entity, or a cascade of one."""
    auto_capture_config: AutoCaptureConfig | None = None
    """Keeps questions and answers in the ledger."""


class SmallfirstSettings(Record):
    """What Databricks has no word for, under `smallfirst` or `routing`."""

    strategy: Literal["split", "cascade"] = "split"
    """`cascade`: registered models answer what their certificate allows, the fallback the rest."""
    fallback: str = ""
    """External entity that a cascade asks last; the only one if there is but one."""
    override: SignedOverride | None = None
    """Signature that lets a cascade answer without an issued certificate."""
    threshold: Any = None
    """Refused: the certificate has it."""
    sticky_by: tuple[str, ...] = ("user",)
    """Tags of a request whose equal values go to the same entity."""
    prices: PriceBook = PriceBook()
    """What answers cost."""
    server: ServeSettings = ServeSettings()
    """Address, keys and limits; without `port` a free one is taken once and kept."""
    follow_every_s: float = Field(default=5.0, gt=0)
    """Seconds between two looks at where aliases point."""


class EndpointBody(Record):
    """All that creates an endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    """Under which it is asked."""
    config: EndpointCoreConfig
    """What is served."""
    smallfirst: SmallfirstSettings = SmallfirstSettings()
    """What Databricks has no word for."""
    tags: Any = None
    """Kept and shown."""
    description: Any = None
    """Kept and shown."""
    route_optimized: Any = None
    """Noted."""
    rate_limits: Any = None
    """Noted."""
    ai_gateway: Any = None
    """Noted."""
    budget_policy_id: Any = None
    """Noted."""
    email_notifications: Any = None
    """Noted."""
    telemetry_config: Any = None
    """Noted."""


IGNORED_ENTITY_FIELDS = {
    "workload_size": "the model runs in the endpoint's own process, as large as this machine is",
    "workload_type": "the model runs on what this machine has",
    "scale_to_zero_enabled": "the process stays until `smallfirst endpoints stop`",
    "environment_vars": "models here read no environment; the values are not kept",
    "instance_profile_arn": "nothing here runs under a cloud role",
    "min_provisioned_throughput": "nothing is provisioned",
    "max_provisioned_throughput": "nothing is provisioned",
    "min_provisioned_concurrency": "nothing is provisioned",
    "max_provisioned_concurrency": "smallfirst.server.max_in_flight bounds requests at work",
    "provisioned_model_units": "nothing is provisioned",
    "burst_scaling_enabled": "there is one process",
}
"""Fields of an entity that have no effect, and why."""
IGNORED_BODY_FIELDS = {
    "route_optimized": "there is one route, and it is direct",
    "rate_limits": "kept and shown; smallfirst.server bounds requests at work and in the queue instead",
    "ai_gateway": "kept and shown, with no effect",
    "budget_policy_id": "kept and shown, with no effect",
    "email_notifications": "nobody is written to",
    "telemetry_config": "kept and shown, with no effect",
}
"""Fields of a body that have no effect, and why."""
