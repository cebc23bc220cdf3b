"""Label rows with a large model under a cost cap and keep the confident answers."""

from smallfirst.improvement.labelling.label import label
from smallfirst.improvement.labelling.options import LabelOptions
from smallfirst.improvement.labelling.result import LabellingResult
from smallfirst.improvement.labelling.teacher import Teacher, large_model_teacher

__all__ = ["LabelOptions", "LabellingResult", "Teacher", "label", "large_model_teacher"]
