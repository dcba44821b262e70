import typing

from mezzotint.api import Engine as Engine
from mezzotint.api import generate as generate
from mezzotint.errors import ArchiveError as ArchiveError
from mezzotint.errors import CardError as CardError
from mezzotint.errors import DeadlineExceeded as DeadlineExceeded
from mezzotint.errors import GateRejected as GateRejected
from mezzotint.errors import ImageError as ImageError
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
from mezzotint.request import Animation as Animation
from mezzotint.request import Control as Control
from mezzotint.request import Embedding as Embedding
from mezzotint.request import EnsembleMember as EnsembleMember
from mezzotint.request import Gates as Gates
from mezzotint.request import GateSettings as GateSettings
from mezzotint.request import GenerationRequest as GenerationRequest
from mezzotint.request import GuidanceSchedule as GuidanceSchedule
from mezzotint.request import Hires as Hires
from mezzotint.request import ImagePrompt as ImagePrompt
from mezzotint.request import Inpaint as Inpaint
from mezzotint.request import LatentInput as LatentInput
from mezzotint.request import Lora as Lora
from mezzotint.request import Outpaint as Outpaint
from mezzotint.request import Output as Output
from mezzotint.request import Region as Region
from mezzotint.request import Upscale as Upscale
from mezzotint.request import Variation as Variation
from mezzotint.request import Walk as Walk
from mezzotint.sampling.loop import sample as sample
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
