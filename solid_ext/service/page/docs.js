// The addresses of openapi.json, each with what it takes and gives: no outside host is asked.
"use strict";

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function resolved(schema, all) {
  return schema && schema.$ref ? all[schema.$ref.split("/").pop()] : schema;
}

function kind(schema) {
  if (!schema) return "";
  const parts = (schema.anyOf ?? [schema]).map((one) => {
    if (one.$ref) return one.$ref.split("/").pop();
    if (one.enum) return one.enum.map((value) => JSON.stringify(value)).join(" or ");
    if (one.type === "array") return `list of ${kind(one.items)}`;
    return one.type ?? "anything";
  });
  return [...new Set(parts)].join(" or ");
}

function fields(title, schema, all) {
  const found = resolved(schema, all);
  const lines = Object.entries(found?.properties ?? {}).map(([name, field]) => {
    const needed = (found.required ?? []).includes(name) ? ", required" : "";
    const usual = field.default === undefined || field.default === null ? "" : `, default ${JSON.stringify(field.default)}`;
    return `${name}: ${kind(field)}${needed}${usual}`;
  });
  return [element("h3", title), element("pre", lines.join("\n") || "nothing")];
}

async function show() {
  const api = await (await fetch("openapi.json")).json();
  const all = api.components.schemas;
  const sections = [];
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, about] of Object.entries(methods)) {
      const section = document.createElement("section");
      section.append(element("h2", `${method.toUpperCase()} ${path}`), element("p", about.description ?? ""));
      const parameters = (about.parameters ?? []).map((one) => `${one.name}: ${kind(one.schema)}${one.required ? ", required" : ""}`);
      if (parameters.length) section.append(element("h3", "Parameters"), element("pre", parameters.join("\n")));
      const body = about.requestBody?.content?.["application/json"]?.schema;
      if (body) section.append(...fields("Body", body, all));
      const answer = about.responses["200"]?.content?.["application/json"]?.schema;
      if (answer) section.append(...fields("Answer", answer, all));
      sections.push(section);
    }
  }
  document.getElementById("addresses").replaceChildren(...sections);
}

show().catch(() => {
  const problem = document.getElementById("problem");
  problem.textContent = "The service does not answer.";
  problem.hidden = false;
});
