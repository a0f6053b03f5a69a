// Each test of the suite that a proxy can be put to: {id: kind}. The suite itself prints results without kinds.
import tests from './node_modules/http-cache-tests/tests/index.mjs'
import surrogate from './node_modules/http-cache-tests/tests/surrogate-control.mjs'

const kinds = {}
for (const suite of [...tests, surrogate]) {
  for (const test of suite.tests) {
    if (!test.browser_only) kinds[test.id] = test.kind ?? 'required'
  }
}
console.log(JSON.stringify(kinds))
