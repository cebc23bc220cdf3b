"""Label rows with a large model under a cost cap and keep the confident answers.

    texts ─ sift ─▶ what may be labelled ─ ask (journal, cap) ─▶ answers ─ vote ─▶ training rows, Trust

The price is the teacher's errors: what it gets wrong, the small model learns. So some answers are spent on rows that
people have answered, and the figure stands beside the file.
"""

from smallfirst.improvement.labelling.label import label
from smallfirst.improvement.labelling.options import LabelOptions
from smallfirst.improvement.labelling.result import LabellingResult
from smallfirst.improvement.labelling.teacher import Teacher, large_model_teacher

__all__ = ["LabelOptions", "LabellingResult", "Teacher", "label", "large_model_teacher"]
