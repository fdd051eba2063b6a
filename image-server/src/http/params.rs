//! Path and query parameters, checked on the way in.

use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use chunk_format::{FormatError, Name, Namespace};

use crate::http::error::ApiError;
use crate::limits::MAX_ALSO;

/// The values of a route's path parameters.
pub(crate) struct PathParams(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for PathParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::BadRequest(error.to_string()))?;
        Ok(Self(params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }
}

impl PathParams {
    /// The text of a parameter; empty when the route has none of this name.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// A parameter as a name or id.
    pub(crate) fn get<T: FromStr<Err = FormatError>>(&self, name: &str) -> Result<T, ApiError> {
        self.text(name).parse().map_err(malformed("path"))
    }

    /// The parameters `kind` and `name` as a namespace.
    pub(crate) fn namespace(&self) -> Result<Namespace, ApiError> {
        format!("{}/{}", self.text("kind"), self.text("name")).parse().map_err(malformed("path"))
    }
}

/// Says where a value stood that was refused.
pub(crate) fn malformed(place: &'static str) -> impl Fn(FormatError) -> ApiError {
    move |error| ApiError::BadRequest(format!("{place}: {error}"))
}

/// The parameters after the question mark; one that a route does not know is refused, not ignored.
pub(crate) struct QueryParams(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for QueryParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::BadRequest("the query cannot be read".to_owned()))?;
        Ok(Self(pairs))
    }
}

impl QueryParams {
    /// Checks that only these parameters are there.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(_) if known.is_empty() => Err(ApiError::BadRequest("this path takes no query".to_owned())),
            Some(_) => {
                Err(ApiError::BadRequest(format!("query: only `{}` is known here", known.join("`, `"))))
            }
        }
    }

    /// A parameter that may be given once.
    fn once(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::BadRequest(format!("query: `{name}` is given twice"))),
            (value, None) => Ok(value),
        }
    }

    /// A whole number of at least 1.
    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.once(name)? else { return Ok(None) };
        let number = text.parse::<i64>().ok().filter(|number| *number >= 1);
        number
            .map(Some)
            .ok_or_else(|| ApiError::BadRequest(format!("query: `{name}` must be a number from 1 up")))
    }

    /// Whether a switch is on: `true`, `false`, or not given.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.once(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::BadRequest(format!("query: `{name}` must be true or false"))),
        }
    }

    /// A name.
    pub(crate) fn name(&self, name: &str) -> Result<Option<Name>, ApiError> {
        self.once(name)?.map(|text| text.parse().map_err(malformed("query"))).transpose()
    }

    /// A key or an id, which must be given.
    pub(crate) fn needed<T: FromStr<Err = FormatError>>(&self, name: &str) -> Result<T, ApiError> {
        let text = self.once(name)?;
        let text = text.ok_or_else(|| ApiError::BadRequest(format!("query: `{name}` is needed")))?;
        text.parse().map_err(malformed("query"))
    }

    /// The images named by `also`. Only images: what one user's objects were made of is no one else's business.
    pub(crate) fn also(&self) -> Result<Vec<Namespace>, ApiError> {
        let mut also = Vec::new();
        for (_, text) in self.0.iter().filter(|(name, _)| name == "also") {
            let namespace: Namespace = text.parse().map_err(malformed("query"))?;
            if !matches!(namespace, Namespace::Image(_)) {
                return Err(ApiError::BadRequest("query: `also` must be image/IMAGE".to_owned()));
            }
            if !also.contains(&namespace) {
                also.push(namespace);
            }
        }
        if also.len() > MAX_ALSO {
            return Err(ApiError::BadRequest(format!("query: at most {MAX_ALSO} `also` are taken")));
        }
        Ok(also)
    }
}

/// Checks the length of a text that others are shown, in bytes, and that it cannot drive their terminals.
///
/// # Errors
/// `BadRequest`, naming the field.
pub(crate) fn check_text(
    field: &str,
    text: &str,
    allowed_bytes: RangeInclusive<usize>,
) -> Result<(), ApiError> {
    if !allowed_bytes.contains(&text.len()) || text.chars().any(char::is_control) {
        let (least, most) = (allowed_bytes.start(), allowed_bytes.end());
        let expected = format!("{least} to {most} bytes without control characters");
        return Err(ApiError::BadRequest(format!("`{field}` must have {expected}")));
    }
    Ok(())
}
