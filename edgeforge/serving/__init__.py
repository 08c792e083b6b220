"""`edgeforge serve`: a bundle behind the HTTP interface of OpenAI."""
