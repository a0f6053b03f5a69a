// Works through @gitbeaker/rest: node clients.mjs URL TOKEN [oauth]. Prints what it found as one line of JSON.
import { Gitlab } from "@gitbeaker/rest";

const [url, token, kind] = process.argv.slice(2);
const api = new Gitlab({ host: url, [kind === "oauth" ? "oauthToken" : "token"]: token });
const nested = "platform/tools/deploy/runner-images";
const found = {};

found.offset = (await api.Projects.all({ perPage: 10 })).map((project) => project.id);
found.keyset = (
  await api.Projects.all({ pagination: "keyset", orderBy: "id", sort: "asc", perPage: 7 })
).map((project) => project.id);
found.project = (await api.Projects.show(nested)).path_with_namespace;
found.branch = (await api.Branches.show(nested, "feature/deep/er")).name;
found.paths = [];
for (const path of ["src/deep/er/than/usual.txt", "src/a+b.txt", "docs/über uns.md", "docs/[x]?#.txt", "docs/100%.txt"]) {
  found.paths.push((await api.RepositoryFiles.show(nested, path, "main")).file_path);
}
found.raw = await api.RepositoryFiles.showRaw(nested, "src/app.py", "main");

const issue = await api.Issues.create(nested, "From Node");
found.edited = (await api.Issues.edit(nested, issue.iid, { title: "Edited" })).title;
found.note = (await api.IssueNotes.create(nested, issue.iid, "Done")).body;
await api.Issues.remove(nested, issue.iid);
found.gone = await api.Issues.show(issue.iid, { projectId: nested }).then(
  () => 200,
  (error) => error.cause.response.status,
);

const made = { content: "1", branch: "feature/login", commitMessage: "Add" };
await api.RepositoryFiles.create(nested, "new/from node.txt", "feature/login", "1", "Add");
await api.RepositoryFiles.remove(nested, "new/from node.txt", made.branch, "Remove");

const uploaded = await api.requester.post(`projects/${encodeURIComponent(nested)}/uploads`, {
  isForm: true,
  body: (() => {
    const form = new FormData();
    form.append("file", new Blob(["hello"]), "hello.txt");
    return form;
  })(),
});
found.uploaded = uploaded.body.markdown.startsWith("[hello.txt](");

console.log(JSON.stringify(found));
