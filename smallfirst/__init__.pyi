"""Types of the public names, for type checkers and editors; `__init__.py` loads the names on first use."""

from types import ModuleType

from smallfirst.data.dataset import Dataset as Dataset
from smallfirst.data.sources.load import load as load
from smallfirst.evaluation.evaluate import EvaluationSetup as EvaluationSetup
from smallfirst.evaluation.evaluate import compare as compare
from smallfirst.evaluation.evaluate import evaluate as evaluate
from smallfirst.evaluation.llm_judge import LLMJudge as LLMJudge
from smallfirst.evaluation.llm_judge import apply_judgments as apply_judgments
from smallfirst.evaluation.llm_judge import judge_agreement as judge_agreement
from smallfirst.evaluation.results import Evaluation as Evaluation
from smallfirst.gate.gate import Gate as Gate
from smallfirst.gate.verdict import Verdict as Verdict
from smallfirst.models.loading import load_model as load_model
from smallfirst.models.protocol import Capability as Capability
from smallfirst.models.protocol import Chunk as Chunk
from smallfirst.models.protocol import Completion as Completion
from smallfirst.models.protocol import Model as Model
from smallfirst.models.protocol import Request as Request
from smallfirst.models.remote.config import EndpointConfig as EndpointConfig
from smallfirst.pipeline.run import run as run
from smallfirst.project.task_file import SignedOverride as SignedOverride
from smallfirst.project.task_file import TaskFile as TaskFile
from smallfirst.project.task_file import read_task_file as read_task_file
from smallfirst.registry.versions import ModelVersion as ModelVersion
from smallfirst.registry.versions import resolve as resolve
from smallfirst.routing.certificate.certificate import Certificate as Certificate
from smallfirst.routing.certificate.certificate import certify as certify
from smallfirst.routing.certificate.guarantee import Guarantee as Guarantee
from smallfirst.routing.router import Router as Router
from smallfirst.serving.app import serve as serve
from smallfirst.serving.ledger.ledger import Ledger as Ledger
from smallfirst.serving.settings import ServeSettings as ServeSettings
from smallfirst.tasks.answer import Answer as Answer
from smallfirst.tasks.chat import Chat as Chat
from smallfirst.tasks.classify import Classify as Classify
from smallfirst.tasks.extract import Extract as Extract
from smallfirst.training.config import TrainConfig as TrainConfig

__version__: str

foundation_model: ModuleType
