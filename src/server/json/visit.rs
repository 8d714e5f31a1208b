//! The way of a [`Reader`] into what a value consists of.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::{Fault, Shortened};
use super::{Bound, NAME_SHOWN, Reader, Seed, Step, Tracker};

/// A visitor that is watched.
pub(super) struct Watched<'t, 'a, V> {
    pub(super) visitor: V,
    pub(super) tracker: &'t mut Tracker<'a>,
}

/// Methods that visit a value without parts: its error becomes a short one.
macro_rules! shortly {
    ($($method:ident($value:ty))*) => {$(
        fn $method<E: Error>(self, value: $value) -> Result<Self::Value, E> {
            self.visitor.$method::<Fault>(value).map_err(E::custom)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watched<'_, '_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    shortly! {
        visit_bool(bool) visit_char(char)
        visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128)
        visit_f32(f32) visit_f64(f64)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        self.visitor.visit_unit::<Fault>().map_err(E::custom)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        self.visitor.visit_none::<Fault>().map_err(E::custom)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        self.visitor.visit_some(Reader {
            inner,
            tracker: self.tracker,
        })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        self.visitor.visit_newtype_struct(Reader {
            inner,
            tracker: self.tracker,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<Self::Value, A::Error> {
        let bound = self.tracker.bound();
        let visited = self.visitor.visit_seq(Elements {
            inner,
            bound,
            count: 0,
            tracker: &mut *self.tracker,
        });
        self.tracker.at_fault(visited)
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<Self::Value, A::Error> {
        let bound = self.tracker.bound();
        let visited = self.visitor.visit_map(Members {
            inner,
            bound,
            count: 0,
            name: String::new(),
            tracker: &mut *self.tracker,
        });
        self.tracker.at_fault(visited)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<Self::Value, A::Error> {
        self.visitor.visit_enum(Variant {
            inner,
            tracker: self.tracker,
        })
    }
}

/// The elements of a list.
struct Elements<'t, 'a, A> {
    inner: A,
    bound: Option<Bound>,
    count: usize,
    tracker: &'t mut Tracker<'a>,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, '_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.tracker.path.push(Step::Index(self.count));
        let read = self.inner.next_element_seed(Seed {
            seed,
            tracker: &mut *self.tracker,
        });
        let read = self.tracker.at_fault(read);
        self.tracker.path.pop();
        let read = read?;
        self.count += usize::from(read.is_some());
        self.tracker.check(self.bound, self.count)?;
        Ok(read)
    }
}

/// The members of an object.
struct Members<'t, 'a, A> {
    inner: A,
    bound: Option<Bound>,
    count: usize,
    /// Name of the last one, or its begin.
    name: String,
    tracker: &'t mut Tracker<'a>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<'_, '_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let name = &mut self.name;
        let read = self.inner.next_key_seed(Named { inner: seed, name })?;
        self.count += usize::from(read.is_some());
        self.tracker.check(self.bound, self.count)?;
        Ok(read)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let name = std::mem::take(&mut self.name);
        self.tracker.path.push(Step::Member(name));
        let read = self.inner.next_value_seed(Seed {
            seed,
            tracker: &mut *self.tracker,
        });
        let read = self.tracker.at_fault(read);
        self.tracker.path.pop();
        read
    }
}

/// Notes the begin of a member's name: as a seed, as the deserializer for it, and as its visitor.
struct Named<'n, T> {
    inner: T,
    name: &'n mut String,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Named<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Named {
            inner: deserializer,
            name: self.name,
        })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Named<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Named {
            inner: visitor,
            name: self.name,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Named<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<V::Value, E> {
        *self.name = Shortened::of(name, NAME_SHOWN);
        self.inner.visit_str::<Fault>(name).map_err(E::custom)
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<V::Value, E> {
        *self.name = Shortened::of(name, NAME_SHOWN);
        let visited = self.inner.visit_borrowed_str::<Fault>(name);
        visited.map_err(E::custom)
    }
}

/// A value of an enum: its variant, and then its content.
struct Variant<'t, 'a, A> {
    inner: A,
    tracker: &'t mut Tracker<'a>,
}

impl<'t, 'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Variant<'t, 'a, A> {
    type Error = A::Error;
    type Variant = Variant<'t, 'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let Self { inner, tracker } = self;
        let seed = Seed {
            seed,
            tracker: &mut *tracker,
        };
        let (value, inner) = inner.variant_seed(seed)?;
        Ok((value, Variant { inner, tracker }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Variant<'_, '_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Seed {
            seed,
            tracker: self.tracker,
        })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let tracker = self.tracker;
        self.inner.tuple_variant(len, Watched { visitor, tracker })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let tracker = self.tracker;
        self.inner
            .struct_variant(fields, Watched { visitor, tracker })
    }
}
