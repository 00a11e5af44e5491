// Cosine similarity, and the order it gives.

// Of two embeddings of the same length; 0 where one of them is all zeros.
export function cosine(a, b) {
  let [product, squareA, squareB] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    squareA += a[i] * a[i];
    squareB += b[i] * b[i];
  }
  const norm = Math.sqrt(squareA) * Math.sqrt(squareB);
  return norm > 0 ? product / norm : 0;
}

// The pictures, the query first, the most similar next; equal ones in the order they had. Each gets its `similarity`.
export function bySimilarity(pictures, query) {
  for (const picture of pictures) picture.similarity = cosine(query.embedding, picture.embedding);
  const rest = pictures.filter((picture) => picture !== query);
  return [query, ...rest.sort((a, b) => b.similarity - a.similarity)];
}
