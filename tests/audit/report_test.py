"""report.json against its schema, and what report.html says."""

import dataclasses
import functools
import json
import os
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from tests.audit import toy
from unlearn_jax import audit
from unlearn_jax.audit import plots
from unlearn_jax.audit import report as report_lib


@functools.cache
def made(judged: str = 'original'):
  task = toy.make(0)
  model = {'retrained': task.retrained[5], 'original': task.original}[judged]
  return audit.audit(toy.apply, original=task.original, unlearned=model,
                     retrained=task.retrained[:5], data=task.data)


def errors(value, schema, root, path='$'):
  """Violations of the part of JSON Schema that our schema uses; unknown keywords are an error."""
  known = {'$schema', 'title', '$defs', '$ref', 'type', 'const', 'enum', 'anyOf', 'properties',
           'required', 'additionalProperties', 'minProperties', 'items', 'minItems', 'maxItems',
           'minimum', 'maximum', 'pattern'}
  assert not set(schema) - known, set(schema) - known
  if '$ref' in schema:
    return errors(value, root['$defs'][schema['$ref'].removeprefix('#/$defs/')], root, path)
  if 'anyOf' in schema:
    tried = [errors(value, option, root, path) for option in schema['anyOf']]
    return [] if [] in tried else [f'{path}: none of anyOf: {tried}']
  if 'const' in schema or 'enum' in schema:
    allowed = schema.get('enum', [schema.get('const')])
    return [] if value in allowed else [f'{path}: {value!r} not in {allowed}']
  kinds = {'object': dict, 'array': list, 'string': str, 'null': type(None), 'boolean': bool,
           'integer': int, 'number': (int, float)}
  names = schema['type'] if isinstance(schema['type'], list) else [schema['type']]
  if not any(isinstance(value, kinds[name]) and (isinstance(value, bool) <= (name == 'boolean'))
             for name in names):
    return [f'{path}: {type(value).__name__} is no {names}']
  found = []
  if isinstance(value, dict):
    properties = schema.get('properties', {})
    found += [f'{path}: lacks {name}' for name in schema.get('required', ()) if name not in value]
    if len(value) < schema.get('minProperties', 0):
      found.append(f'{path}: too few properties')
    for name, part in value.items():
      rule = properties.get(name, schema.get('additionalProperties', True))
      if rule is False:
        found.append(f'{path}: {name} is not allowed')
      elif rule is not True:
        found += errors(part, rule, root, f'{path}.{name}')
  elif isinstance(value, list):
    if not schema.get('minItems', 0) <= len(value) <= schema.get('maxItems', len(value)):
      found.append(f'{path}: {len(value)} items')
    for i, part in enumerate(value):
      found += errors(part, schema['items'], root, f'{path}[{i}]')
  elif isinstance(value, str) and not re.search(schema.get('pattern', ''), value):
    found.append(f'{path}: {value!r} does not match {schema["pattern"]}')
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    if not schema.get('minimum', value) <= value <= schema.get('maximum', value):
      found.append(f'{path}: {value} is out of range')
  return found


class JsonTest(parameterized.TestCase):

  def written(self, report):
    path = os.path.join(tempfile.mkdtemp(), 'report.json')
    report.to_json(path)
    with open(path) as file:
      return json.load(file)

  @parameterized.parameters('original', 'retrained')
  def test_follows_the_schema(self, judged):
    schema = report_lib.schema()
    self.assertEqual(errors(self.written(made(judged)), schema, schema), [])

  def test_small_audits_follow_the_schema_too(self):
    task = toy.make(0)
    small = {split: {name: values[:20] for name, values in fields.items() if name != 'id'}
             for split, fields in task.data.items() if split != 'test'}
    found = audit.audit(toy.apply, original=task.original, unlearned=task.original,
                        retrained=task.retrained[:2], data=small)
    schema = report_lib.schema()
    self.assertEqual(errors(self.written(found), schema, schema), [])
    found.to_html(os.path.join(tempfile.mkdtemp(), 'report.html'))

  @parameterized.parameters(
      ('verdict', 'MAYBE'), ('models', {}), ('statistics', {'a': {'gap': 1}}), ('extra', 1),
      ('records', [{'id': 3}]))
  def test_the_schema_refuses(self, name, value):
    schema = report_lib.schema()
    self.assertNotEmpty(errors(self.written(made()) | {name: value}, schema, schema))

  def test_values_survive(self):
    found, expected = self.written(made()), made()
    self.assertEqual(found['verdict'], expected.verdict)
    for name, part in expected.statistics.items():
      self.assertEqual(found['statistics'][name]['gap'], part.gap)
      self.assertEqual(found['statistics'][name]['needed'], part.needed)


class HtmlTest(parameterized.TestCase):

  def page(self, report):
    path = os.path.join(tempfile.mkdtemp(), 'report.html')
    report.to_html(path)
    with open(path, encoding='utf-8') as file:
      return file.read()

  @parameterized.parameters(('original', 'FAIL', 'still differs'),
                            ('retrained', 'PASS', 'behaves like one that never saw'))
  def test_says_the_verdict_first(self, judged, verdict, words):
    page = self.page(made(judged))
    banner = page[page.index('class="banner'):][:400]
    self.assertIn(f'<b>{verdict}</b>', banner)
    self.assertIn(words, banner)

  def test_is_self_contained_and_whole(self):
    page = self.page(made())
    self.assertEmpty(re.findall(r'(?:src|href)="(?!#)', page))
    self.assertEqual(page.count('<svg'), 3)
    for digest in made().models.values():
      self.assertIn(digest, page)
    for heading in ('What was asked and what was done', 'What this audit cannot show',
                    'Is the audit itself sound?', 'Fingerprints'):
      self.assertIn(heading, page)
    for name in made().statistics:
      self.assertIn(name, page)
    self.assertIn('n/a: KLOM compares', page)

  def test_questions_have_verdicts_in_words(self):
    self.assertEqual(report_lib.question_verdict(made(), 'forgotten'), 'FAIL')
    self.assertEqual(report_lib.question_verdict(made(), 'useful'), 'PASS')
    self.assertIn('No: it treats them differently', self.page(made()))

  def test_an_inconclusive_question_says_what_would_settle_it(self):
    part = made().statistics['accuracy/forget']
    part = dataclasses.replace(part, verdict='INCONCLUSIVE', needed=180, needed_retrained=9)
    report = dataclasses.replace(made(), verdict='INCONCLUSIVE', statistics={
        **made().statistics, 'accuracy/forget': part,
        'loss_gap': dataclasses.replace(made().statistics['loss_gap'], verdict='PASS')})
    self.assertIn('about 180 records instead of 60 and 9 retrained models instead of 5',
                  self.page(report))

  def test_a_table_without_its_oracle_is_refused(self):
    rows = [('Original', '1'), ('Unlearned', '2')]
    with self.assertRaisesRegex(ValueError, 'without the retrained'):
      report_lib.table(('Model', 'Accuracy'), rows)
    self.assertLen(report_lib.table(('Model', 'Accuracy'), [*rows, ('Retrained', '3')]).rows, 3)
    self.assertLen(report_lib.table(('Measurement', 'Original', 'Retrained'), [('a', '1', '2')])
                   .rows, 1)

  def test_a_report_that_lost_its_retrained_models_is_refused(self):
    attacks = {name: part for name, part in made().attacks.items()
               if not name.startswith('retrained')}
    with self.assertRaisesRegex(ValueError, 'without the retrained'):
      self.page(dataclasses.replace(made(), attacks=attacks))

  def test_curve(self):
    x, y = plots.curve([1.0, 2.0], [2.0, 3.0])
    self.assertEqual(list(x), [0, 0, 0.5, 1])
    self.assertEqual(list(y), [0, 0.5, 1, 1])


if __name__ == '__main__':
  absltest.main()
