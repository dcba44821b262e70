import typing

from mezzotint.api import Engine as Engine
from mezzotint.api import generate as generate
from mezzotint.client.asynchronous import AsyncClient as AsyncClient
from mezzotint.client.asynchronous import AsyncClientJob as AsyncClientJob
from mezzotint.client.client import Client as Client
from mezzotint.client.client import ClientJob as ClientJob
from mezzotint.errors import ArchiveError as ArchiveError
from mezzotint.errors import CardError as CardError
from mezzotint.errors import DeadlineExceeded as DeadlineExceeded
from mezzotint.errors import GateRejected as GateRejected
from mezzotint.errors import ImageError as ImageError
from mezzotint.errors import InUse as InUse
from mezzotint.errors import InvalidField as InvalidField
from mezzotint.errors import InvalidRequest as InvalidRequest
from mezzotint.errors import MezzotintError as MezzotintError
from mezzotint.errors import ModelError as ModelError
from mezzotint.errors import ModelNotAllowed as ModelNotAllowed
from mezzotint.errors import NotReady as NotReady
from mezzotint.errors import OutOfMemory as OutOfMemory
from mezzotint.errors import Overloaded as Overloaded
from mezzotint.errors import QueueFull as QueueFull
from mezzotint.errors import Refused as Refused
from mezzotint.errors import ShapeError as ShapeError
from mezzotint.errors import UnknownName as UnknownName
from mezzotint.errors import WeightsError as WeightsError
from mezzotint.errors import WorkFailed as WorkFailed
from mezzotint.models.base import Model as Model
from mezzotint.pipelines import Pipeline as Pipeline
from mezzotint.pipelines import PipelineOutput as PipelineOutput
from mezzotint.pipelines import pipeline as pipeline
from mezzotint.request import *  # noqa: F403 - all that it lists is public
from mezzotint.sampling.loop import sample as sample
from mezzotint.service.verification import Verification as Verification
from mezzotint.train.config.config import TrainConfig as TrainConfig
from mezzotint.train.trainer import Trainer as Trainer
from mezzotint.types import Attempt as Attempt
from mezzotint.types import Cancelled as Cancelled
from mezzotint.types import Failed as Failed
from mezzotint.types import Finished as Finished
from mezzotint.types import GenerationResult as GenerationResult
from mezzotint.types import ImageFinished as ImageFinished
from mezzotint.types import ImageInput as ImageInput
from mezzotint.types import ImageOutput as ImageOutput
from mezzotint.types import Queued as Queued
from mezzotint.types import Size as Size
from mezzotint.types import StageTimings as StageTimings
from mezzotint.types import Started as Started
from mezzotint.types import Stepped as Stepped
from mezzotint.types import Verdict as Verdict

__version__: str

def from_components(**components: typing.Any) -> Model: ...
def load_model(source: typing.Any, **options: typing.Any) -> Model: ...
