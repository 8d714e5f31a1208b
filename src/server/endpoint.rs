//! A path of the server, and what it does for each method.
//!
//! A route comes with its description, so that none is served that `/openapi.json` does not have, but for the page
//! that shows the document.

use std::fmt;

use actix_web::http::Method;
use actix_web::{FromRequest, Handler, HttpRequest, Resource, Responder, Route, web};

use super::error::no_such_method;
use super::openapi::Description;

/// A path and its routes.
pub struct Endpoint {
    pattern: &'static str,
    routes: Vec<(Method, Route)>,
    descriptions: Vec<(Method, Description)>,
}

impl Endpoint {
    /// A path that takes nothing yet, in the form of actix-web: `/session/{id}`.
    #[must_use]
    pub fn at(pattern: &'static str) -> Self {
        Self {
            pattern,
            routes: Vec::new(),
            descriptions: Vec::new(),
        }
    }

    /// Adds what answers a method.
    #[must_use]
    pub fn on<F, Args>(mut self, method: Method, handler: F, description: Description) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        let route = web::method(method.clone()).to(handler);
        self.routes.push((method.clone(), route));
        self.descriptions.push((method, description));
        self
    }

    /// Adds what answers a method and is no operation for programs: the page that shows the document, and its parts.
    #[must_use]
    pub fn for_browsers<F, Args>(mut self, method: Method, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        let route = web::method(method.clone()).to(handler);
        self.routes.push((method, route));
        self
    }

    /// The path as OpenAPI writes it: a parameter is its name alone.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = String::new();
        for (index, part) in self.pattern.split('{').enumerate() {
            match part.split_once('}') {
                Some((parameter, rest)) if index > 0 => {
                    let name = parameter.split(':').next().unwrap_or(parameter);
                    path.push_str(&format!("{{{name}}}{rest}"));
                }
                _ => path.push_str(part),
            }
        }
        path
    }

    /// The descriptions of its routes.
    #[must_use]
    pub fn descriptions(self) -> Vec<(Method, Description)> {
        self.descriptions
    }

    /// Returns the resource for actix-web. A method that the route lacks is answered with the methods that it has.
    #[must_use]
    pub fn resource(self) -> Resource {
        let methods: Vec<_> = self
            .routes
            .iter()
            .map(|(method, _)| method.as_str())
            .collect();
        let allowed = methods.join(", ");
        let other = move |request: HttpRequest| {
            let response = no_such_method(&request, &allowed);
            async move { response }
        };
        let resource = web::resource(self.pattern).default_service(web::to(other));
        let routes = self.routes.into_iter();
        routes.fold(resource, |resource, (_, route)| resource.route(route))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("pattern", &self.pattern)
            .field("descriptions", &self.descriptions)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_documented_path_has_no_expressions() {
        let path = |pattern| Endpoint::at(pattern).path();
        assert_eq!(path("/health"), "/health");
        assert_eq!(path("/session/{id}/files"), "/session/{id}/files");
        assert_eq!(path("/s/{id}/{path:.*}"), "/s/{id}/{path}");
    }
}
