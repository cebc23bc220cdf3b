"""Who answered is read in one place: no other code compares a stage with the name of one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import smallfirst
from smallfirst.models.stages import OUT_OF_SCOPE, Answerer

PACKAGE = Path(smallfirst.__file__).parent
NAMES = {OUT_OF_SCOPE, *Answerer}
SURE = {OUT_OF_SCOPE, "general"}
"""Names of nothing but stages; the others are names of judges, candidates and portions, too."""


def comparisons(code: str) -> Iterator[str]:
    """Yield comparisons, memberships, set operations and SQL conditions of stages with names of stages."""
    for node in ast.walk(ast.parse(code)):
        is_sql = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("in_")
        is_case = isinstance(node, ast.Match)
        if is_sql or is_case or isinstance(node, ast.Compare | ast.BinOp):
            found = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and one.value in NAMES}
            compared = ast.unparse(node.subject if isinstance(node, ast.Match) else node)
            names = {name.id for name in ast.walk(ast.parse(compared)) if isinstance(name, ast.Name)}
            names |= {name.attr for name in ast.walk(ast.parse(compared)) if isinstance(name, ast.Attribute)}
            if "model_fields_set" in names:  # names of settings, not of stages
                continue
            if found & SURE or (found and any("stage" in name for name in names)):
                yield compared


def test_no_stage_is_compared_with_a_name_outside_of_its_module() -> None:
    wrong = ('row.stage == "large"', 'stage not in ("", "person")', 'stages & {"large"}', 'a.to == "general"')
    assert [len([*comparisons(code)]) for code in (*wrong, 't.c.stage.in_(("large",))')] == [1] * 5
    assert not [*comparisons('judge == "large"')]
    found = {
        str(path.relative_to(PACKAGE)): [*comparisons(path.read_text(encoding="utf-8"))]
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "models" / "stages.py"
    }
    assert {path: of for path, of in found.items() if of} == {}
