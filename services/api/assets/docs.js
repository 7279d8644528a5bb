// Shows the API's description. A file of its own: the page's policy allows no script inside it.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Otherwise the page would send the description to a service that checks it.
  validatorUrl: null,
});
